"""CSA and USA beside open_clip's own loss: their heads, temperatures, rows and loss.

The trainer runs unchanged, because everything takes a way that it has already. The tokens of a pair
begin with its label (split and caption row). The model takes the label off, and returns it with the
uni-modal features and the temperatures among its outputs. The trainer passes the outputs to the
loss, by name; with ``--accum-freq``, it concatenates them over batches first. Heads and
temperatures are parameters of the model, which are all that open_clip optimises and saves.

``python -m cusa.hosts.open_clip`` starts the trainer; this module is for training loops of your
own. It imports nothing from open_clip. For a complete program see docs/examples/open_clip_loss.py.
"""

from __future__ import annotations

from cusa.hosts.open_clip.loss import SoftLabelLoss
from cusa.hosts.open_clip.model import SoftLabels, add_soft_labels
from cusa.hosts.open_clip.tokens import LabelledTokens, labelled_tokens

# Without the submodules: the trainer's module needs open_clip.
__all__ = [
    "LabelledTokens",
    "SoftLabelLoss",
    "SoftLabels",
    "add_soft_labels",
    "labelled_tokens",
]

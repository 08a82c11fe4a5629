"""The label rules by name: what each needs, and what it makes of a tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cusa.train.loss.config import Divergence, LossConfig
from cusa.train.loss.rules.false_negatives import guide_mask, self_guide_mask
from cusa.train.loss.rules.settings import RuleName
from cusa.train.loss.rules.sigmoid import sigmoid_signs
from cusa.train.loss.rules.soft_labels import cwcl_labels, dr_labels, hycd_labels, xclr_labels
from cusa.train.loss.rules.tile import Tile

RuleFunction = Callable[[Tile, LossConfig], Tensor]


class Rule(NamedTuple):
    """A label rule; exactly one of its functions is given.

    Attributes:
        labels: Returns logits of the targets, ``[n, M]``.
        mask: Returns which candidates stay, bool ``[n, M]``; the targets are the positives.
        signs: Returns soft signs, ``[n, M]``, for a sigmoid loss.
        divergence: How the student's distributions are compared with the targets.
    """

    labels: RuleFunction | None = None
    mask: RuleFunction | None = None
    signs: RuleFunction | None = None
    divergence: Divergence = "cross_entropy"


RULES: dict[RuleName, Rule] = {
    "cwcl": Rule(labels=cwcl_labels),
    "xclr": Rule(labels=xclr_labels),
    "hycd": Rule(labels=hycd_labels, divergence="kl"),
    "dr": Rule(labels=dr_labels),
    "dr-sigmoid": Rule(signs=sigmoid_signs),
    "guide": Rule(mask=guide_mask),
    "self-guide": Rule(mask=self_guide_mask),
}

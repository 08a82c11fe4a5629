"""The label rules by name: what each needs, and what it makes of a tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from cusa.train.loss.config import Divergence, LossConfig
from cusa.train.loss.rules.false_negatives import guide_mask, self_guide_mask
from cusa.train.loss.rules.settings import RuleName
from cusa.train.loss.rules.sigmoid import sigmoid_signs
from cusa.train.loss.rules.soft_labels import (
    cwcl_labels,
    dr_labels,
    hycd_labels,
    interactive_labels,
    xclr_labels,
)
from cusa.train.loss.rules.tile import Tile


class Rule(NamedTuple):
    """A label rule.

    Attributes:
        gives: What its function returns, ``[n, M]``: logits of the targets (``"labels"``), targets
            that are known as they are (``"distributions"``), which candidates stay beside the
            positives (``"mask"``), or soft signs for a sigmoid loss (``"signs"``).
        function: The function of a tile.
        divergence: How the student's distributions are compared with the targets.
    """

    gives: Literal["labels", "distributions", "mask", "signs"]
    function: Callable[[Tile, LossConfig], Tensor]
    divergence: Divergence = "cross_entropy"


RULES: dict[RuleName, Rule] = {
    "cwcl": Rule("labels", cwcl_labels),
    "xclr": Rule("labels", xclr_labels),
    "hycd": Rule("labels", hycd_labels, divergence="kl"),
    "dr": Rule("labels", dr_labels),
    "dr-sigmoid": Rule("signs", sigmoid_signs),
    "features": Rule("distributions", interactive_labels),
    "guide": Rule("mask", guide_mask),
    "self-guide": Rule("mask", self_guide_mask),
}

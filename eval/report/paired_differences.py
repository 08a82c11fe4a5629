"""Differences of a model's figures from the first model's, as tables show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# What a paired interval tells; empty without an interval.
Verdict = Literal["better", "worse", "no difference can be told", ""]
SIGNS: Mapping[Verdict, str] = {
    "better": "▲",
    "worse": "▼",
    "no difference can be told": "○",
    "": "",
}
# A figure in comparison.json: its data set and its metric.
ComparedFigure = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """The difference of a figure from that of the first model.

    Attributes:
        value: This model's figure less the first model's.
        low: Lower end of its paired 95 % interval; ``None`` without one.
        high: Upper end; ``None`` without an interval.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """The difference as printed."""
        return f"{self.value:+.1f}"

    @property
    def interval(self) -> str:
        """Its interval as printed; empty without one."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:+.1f} to {self.high:+.1f}"

    @property
    def verdict(self) -> Verdict:
        """What the interval tells, of a figure that is the better the higher it is."""
        if self.low is None or self.high is None:
            return ""
        if self.low <= 0 <= self.high:
            return "no difference can be told"
        return "better" if self.low > 0 else "worse"

    @property
    def sign(self) -> str:
        """A sign that stands for the verdict."""
        return SIGNS[self.verdict]


@dataclass(frozen=True)
class SuiteDifferences:
    """The differences of a model from the first one in the figures of a suite.

    Attributes:
        base: Name of the first model.
        uni_head: The head with which this model answers within a modality.
        figures: The differences by data set and metric, both as in comparison.json.
    """

    base: str
    uni_head: str
    figures: Mapping[ComparedFigure, Difference]

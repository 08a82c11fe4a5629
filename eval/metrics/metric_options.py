"""Rankings to figures: metrics with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cusa.eval.metrics.bootstrap import LEVEL, NO_BOOTSTRAP, Bootstrap, interval, resampled_means
from cusa.eval.metrics.per_query import CUTS, Rankings, Ties, check_ties

# Each query's part in a figure, by what is measured ("cross/retrieval/i2t"); cusa-eval compare pairs them.
PerQuery = dict[str, Rankings]


@dataclass(frozen=True)
class Scoring:
    """How figures are made.

    Attributes:
        ties: What equal similarities count as: ``"pessimistic"`` (against the query), ``"optimistic"``, ``"mean"``.
        bootstrap: Resampling of the queries for the intervals; ``samples`` 0: none.

    Raises:
        SettingError: If there is no such rule for ties.
    """

    ties: Ties = "pessimistic"
    bootstrap: Bootstrap = NO_BOOTSTRAP

    def __post_init__(self) -> None:
        check_ties(self.ties)

    def plain(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        used = {**asdict(self.bootstrap), "level": LEVEL} if self.bootstrap.samples else None
        return {"ties": self.ties, "bootstrap": used}


PLAIN = Scoring()


def one_way(rankings: Rankings, scoring: Scoring = PLAIN) -> dict[str, Any]:
    """Figures of one direction, with ``ci``: intervals by metric.

    Args:
        rankings: Its rankings.
        scoring: How.
    """
    return _with_intervals(rankings, scoring)[0]


def two_ways(rankings: Mapping[str, Rankings], scoring: Scoring = PLAIN) -> dict[str, Any]:
    """Figures of both directions, the mean of all recalls, and RSUM, the sum of the six.

    Args:
        rankings: ``"i2t"`` and ``"t2i"``.
        scoring: How.

    Returns:
        Figures by direction, ``mean`` and ``rsum``, both ``None`` where a direction has no query;
        intervals.
    """
    parts = {way: _with_intervals(r, scoring) for way, r in rankings.items()}
    figures: dict[str, Any] = {way: part for way, (part, _) in parts.items()}
    if any(not part["queries"] for part in figures.values()):
        return {**figures, "mean": None, "rsum": None}
    rsum = recall_sum(list(figures.values()))
    sums = recall_sum([means for _, means in parts.values()])
    n = len(parts) * len(CUTS)
    intervals = _intervals({"mean": interval(sums / n), "rsum": interval(sums)})
    return {**figures, "mean": rsum / n, "rsum": rsum, **intervals}


def recall_sum(parts: Sequence[Mapping[str, Any]]) -> Any:
    """R@1, R@5 and R@10 of all directions, added up: figures, or resampled ones."""
    return sum(part[f"r{k}"] for part in parts for k in CUTS)


def _with_intervals(
    rankings: Rankings, scoring: Scoring
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    values = rankings.values(scoring.ties)
    values["mean"] = sum((values[f"r{k}"] for k in CUTS), np.zeros(len(values["r1"]))) / len(CUTS)
    means = resampled_means(values, scoring.bootstrap, rankings.clusters)
    return rankings.summary(scoring.ties) | _intervals(
        {k: interval(v) for k, v in means.items()}
    ), means


def _intervals(ci: Mapping[str, list[float] | None]) -> dict[str, Any]:
    known = {name: bounds for name, bounds in ci.items() if bounds is not None}
    return {"ci": known} if known else {}

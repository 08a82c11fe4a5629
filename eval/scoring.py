"""Rankings to figures: metrics with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cusa.eval.bootstrap import LEVEL, NO_BOOTSTRAP, Bootstrap, interval, resampled_means
from cusa.eval.rankings import CUTS, Rankings, Ties

# Each query's part in a figure, by what is measured ("cross/retrieval/i2t"); cusa-eval compare pairs them.
PerQuery = dict[str, Rankings]


@dataclass(frozen=True)
class Scoring:
    """How figures are made.

    Attributes:
        ties: What equal similarities count as: ``"pessimistic"`` (against the query), ``"optimistic"``, ``"mean"``.
        bootstrap: Resampling of the queries for the intervals; ``samples`` 0: none.
    """

    ties: Ties = "pessimistic"
    bootstrap: Bootstrap = NO_BOOTSTRAP

    def plain(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        used = {**asdict(self.bootstrap), "level": LEVEL} if self.bootstrap.samples else None
        return {"ties": self.ties, "bootstrap": used}


PLAIN = Scoring()


def one_way(rankings: Rankings, scoring: Scoring = PLAIN, stream: str = "") -> dict[str, Any]:
    """Figures of one direction, with ``ci``: intervals by metric.

    Args:
        rankings: Its rankings.
        scoring: How.
        stream: Names the queries: figures of other queries are resampled independently.
    """
    return _with_intervals(rankings, scoring, stream)[0]


def two_ways(rankings: Mapping[str, Rankings], scoring: Scoring = PLAIN) -> dict[str, Any]:
    """Figures of both directions, the mean of all recalls, and RSUM, the sum of the six.

    Args:
        rankings: ``"i2t"`` and ``"t2i"``.
        scoring: How.
    """
    parts = {way: _with_intervals(r, scoring, way) for way, r in rankings.items()}
    found: dict[str, Any] = {way: part for way, (part, _) in parts.items()}
    mean = sum(part["mean"] for part, _ in parts.values()) / len(parts)
    factors = {"mean": 1 / len(parts), "rsum": float(len(CUTS))}
    sums = sum(means["mean"] for _, means in parts.values())
    ci = {name: interval(factor * np.asarray(sums)) for name, factor in factors.items()}
    return {**found, "mean": mean, "rsum": len(parts) * len(CUTS) * mean} | _intervals(ci)


def _with_intervals(rankings: Rankings, scoring: Scoring, stream: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    values = rankings.values(scoring.ties)
    values["mean"] = sum((values[f"r{k}"] for k in CUTS), np.zeros(len(values["r1"]))) / len(CUTS)
    means = resampled_means(values, scoring.bootstrap, stream)
    return rankings.summary(scoring.ties) | _intervals({k: interval(v) for k, v in means.items()}), means


def _intervals(ci: Mapping[str, list[float] | None]) -> dict[str, Any]:
    known = {name: bounds for name, bounds in ci.items() if bounds is not None}
    return {"ci": known} if known else {}

"""Figures from per-query results: how ties count, and which intervals come with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cusa.eval.metrics.bootstrap import (
    LEVEL,
    NO_BOOTSTRAP,
    Bootstrap,
    interval,
)
from cusa.eval.metrics.per_query import (
    Rankings,
    Ties,
    check_ties,
)
from cusa.eval.metrics.recalls import CUTS, recall_sum

# Rankings by measurement ("cross/retrieval/i2t"); cusa-eval compare pairs those of two models.
PerQuery = dict[str, Rankings]


@dataclass(frozen=True)
class Scoring:
    """Metric options.

    Attributes:
        ties: How equal similarities count: ``"pessimistic"`` (against the query) or
            ``"optimistic"`` (for it); ``"mean"`` averages the two figures.
        bootstrap: Resampling of the queries for intervals; none if ``samples`` is 0.

    Raises:
        SettingError: If ``ties`` is unknown.
    """

    ties: Ties = "pessimistic"
    bootstrap: Bootstrap = NO_BOOTSTRAP

    def __post_init__(self) -> None:
        check_ties(self.ties)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as metrics.json holds them."""
        resampling = None
        if self.bootstrap.samples:
            resampling = {**asdict(self.bootstrap), "level": LEVEL}
        return {"ties": self.ties, "bootstrap": resampling}


DEFAULT_SCORING = Scoring()


def direction_figures(
    rankings: Rankings,
    scoring: Scoring = DEFAULT_SCORING,
) -> dict[str, Any]:
    """Compute the figures of one direction.

    Args:
        rankings: Rankings of its queries.
        scoring: Metric options.

    Returns:
        What :meth:`Rankings.summary` returns, and with a bootstrap ``ci``: an interval
        ``[low, high]`` by metric.
    """
    samples = rankings.resampled(scoring.ties, scoring.bootstrap)
    return rankings.summary(scoring.ties) | _intervals(samples)


def two_way_figures(
    rankings: Mapping[str, Rankings],
    scoring: Scoring = DEFAULT_SCORING,
) -> dict[str, Any]:
    """Compute the figures of both directions, the mean of their recalls, and RSUM.

    Args:
        rankings: Rankings of ``"i2t"`` and ``"t2i"``.
        scoring: Metric options.

    Returns:
        The figures of each direction, as :func:`direction_figures` returns them; ``mean`` and
        ``rsum`` of the six recalls, both ``None`` if a direction has no query; and with a bootstrap
        ``ci``, the intervals of these two.
    """
    # Directions with equally many clusters share their draws, so resampled recalls add up.
    figures: dict[str, Any] = {}
    samples: list[dict[str, np.ndarray]] = []
    for direction, direction_rankings in rankings.items():
        direction_samples = direction_rankings.resampled(scoring.ties, scoring.bootstrap)
        samples.append(direction_samples)
        summary = direction_rankings.summary(scoring.ties)
        figures[direction] = summary | _intervals(direction_samples)

    directions = list(figures.values())
    if not all(direction["queries"] for direction in directions):
        return {**figures, "mean": None, "rsum": None}

    rsum = recall_sum(directions)
    rsum_samples = recall_sum(samples)
    n_recalls = len(rankings) * len(CUTS)
    sum_samples = {
        "mean": rsum_samples / n_recalls,
        "rsum": rsum_samples,
    }
    figures["mean"] = rsum / n_recalls
    figures["rsum"] = rsum
    return figures | _intervals(sum_samples)


def _intervals(samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return ``{"ci": interval by metric}``, or an empty dict if no metric has samples."""
    intervals: dict[str, list[float]] = {}
    for metric, metric_samples in samples.items():
        bounds = interval(metric_samples)
        if bounds is not None:
            intervals[metric] = bounds
    return {"ci": intervals} if intervals else {}

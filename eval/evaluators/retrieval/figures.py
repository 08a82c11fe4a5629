"""Figures of the protocols of retrieval, from their rankings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cusa.eval.evaluators.retrieval.coco import FOLDS, PROTOCOL_METRICS
from cusa.eval.metrics.metric_options import Scoring, direction_figures, two_way_figures
from cusa.eval.metrics.per_query import Rankings


def protocol_figures(
    rankings: Mapping[str, Mapping[str, Rankings]],
    scoring: Scoring,
) -> dict[str, Any]:
    """Compute the figures of each protocol, as metrics.json holds them.

    Args:
        rankings: By protocol and task.
        scoring: Metric options.
    """
    by_protocol: dict[str, Any] = {}
    for protocol, by_task in rankings.items():
        figures: dict[str, Any]
        if protocol in ("unimodal", "truth"):
            figures = {task: direction_figures(ranked, scoring) for task, ranked in by_task.items()}
        else:
            figures = two_way_figures(by_task, scoring)
        if protocol == "coco_1k":
            figures["folds"] = FOLDS
        elif protocol in PROTOCOL_METRICS:
            metrics = PROTOCOL_METRICS[protocol]
            figures = {task: _selected(figures[task], metrics) for task in by_task}
        by_protocol[protocol] = figures
    return by_protocol


def _selected(
    figures: dict[str, Any],
    metrics: tuple[str, ...],
) -> dict[str, Any]:
    """Select some of a direction's metrics, with their intervals and the counts."""
    selected = {key: figures[key] for key in (*metrics, "queries", "candidates", "tied")}
    if "ci" in figures:
        intervals = figures["ci"].items()
        selected["ci"] = {key: bounds for key, bounds in intervals if key in metrics}
    return selected

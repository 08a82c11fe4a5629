"""Models side by side, query by query: paired differences and how sure they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusa.data.errors import CusaError
from cusa.eval.evaluators.retrieval.coco import PROTOCOL_METRICS
from cusa.eval.metrics.bootstrap import LEVEL, Bootstrap, interval, resampled_means, two_sided_p
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman, spearman
from cusa.eval.metrics.metric_options import recall_sum
from cusa.eval.metrics.per_query import Rankings, Ties
from cusa.eval.queries import Queries

_UNI_MODAL = ("t2t", "i2i", "sts")
_PRECISIONS = ("r_precision", "map_at_r")
_FIGURE = ("value", "samples")


@dataclass(frozen=True)
class Figure:
    """A metric of one model: its value and its resampled values, float64 ``[samples]``."""

    value: float
    samples: np.ndarray


def compare(models: Sequence[Mapping[str, Queries]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Differences of all models to the first, on all that they have in common.

    A model answers across modalities with its cross-modal head and within one with its own ``uni_head``. All models'
    queries are resampled alike, so that a query that is hard for all does not count as a difference.

    Args:
        models: Per model its queries by suite; all of a suite were measured on the same data, or it is refused.
        bootstrap: How to resample.

    Returns:
        Content of comparison.json (docs/METRICS.md).

    Raises:
        CusaError: If there is nothing in common, or data or the counting of ties differ.
    """
    suites = [s for s in models[0] if all(s in m for m in models)]
    if not suites:
        raise CusaError(
            "these models have no suite in common; run the same cusa-eval command on each"
        )
    rows: list[dict[str, Any]] = []
    for suite in suites:
        queries = [m[suite] for m in models]
        _check_alike(suite, queries)
        figures = [dict(_figures(q, bootstrap)) for q in queries]
        for key in figures[0]:
            if all(key in f for f in figures):
                rows.append(_row(suite, key, [f[key] for f in figures]))
    if not rows:
        raise CusaError(
            "these models have no figure in common; run the same cusa-eval command on each"
        )
    names = [next(iter(m.values())).name for m in models]
    return {
        "format": "cusa-comparison",
        "format_version": [1, 0],
        "models": names,
        "base": names[0],
        "bootstrap": {"samples": bootstrap.samples, "seed": bootstrap.seed, "level": LEVEL},
        "rows": rows,
    }


def _check_alike(suite: str, queries: Sequence[Queries]) -> None:
    first = queries[0]
    for other in queries[1:]:
        # Of image sets and tasks, those that both have are compared; retrieval is measured on one split.
        differing = [
            name
            for name, fingerprint in first.sets.items()
            if other.sets.get(name, None if suite == "retrieval" else fingerprint) != fingerprint
        ]
        if differing:
            raise CusaError(
                f"{first.name} and {other.name} were measured on different data ({suite}: {', '.join(differing)}); run "
                "cusa-eval again for both on the same"
            )
        if first.ties != other.ties:
            raise CusaError(
                f"{first.name} and {other.name} were measured with ties {first.ties} and {other.ties}; run cusa-eval "
                "again with the same --ties"
            )


def _figures(queries: Queries, bootstrap: Bootstrap) -> Iterator[tuple[tuple[str, str], Figure]]:
    """Figures of one model by set and metric, by the head that answers."""
    directions: dict[str, list[dict[str, Figure]]] = {}
    for key, found in queries.found.items():
        data, head, *part, task = key.split("/")
        if head != (queries.uni_head if task in _UNI_MODAL else "cross"):
            continue
        if isinstance(found, ScoredPairs):
            yield (
                (data, "spearman"),
                Figure(
                    spearman(found.similarities, found.human_scores),
                    resampled_spearman(found, bootstrap),
                ),
            )
            continue
        protocol = part[0] if part else ""
        place = data if protocol in ("", "retrieval", "unimodal") else f"{data} {protocol}"
        by_metric = _ranked_figures(found, queries.ties, bootstrap, protocol)
        for metric, figure in by_metric.items():
            yield (place, f"{task} {metric}"), figure
        if task in ("i2t", "t2i") and protocol not in PROTOCOL_METRICS:
            directions.setdefault(place, []).append(by_metric)
    for place, both in directions.items():
        if len(both) == 2 and all(both):
            values, samples = (
                [{k: getattr(f, of) for k, f in part.items()} for part in both] for of in _FIGURE
            )
            yield (place, "rsum"), Figure(recall_sum(values), recall_sum(samples))


def _ranked_figures(
    rankings: Rankings, ties: str, bootstrap: Bootstrap, protocol: str
) -> dict[str, Figure]:
    """Recalls over all queries, precisions over those that have an answer; in ECCV and PMRP, over all."""
    chosen: Ties = ties  # type: ignore[assignment] # as it was written
    every, answerable = rankings.values(chosen), rankings.answerable()
    if protocol in PROTOCOL_METRICS:
        return _resampled({k: every[k] for k in PROTOCOL_METRICS[protocol]}, bootstrap, rankings)
    precisions = {k: v for k, v in answerable.values(chosen).items() if k in _PRECISIONS}
    recalls = {k: v for k, v in every.items() if k not in _PRECISIONS}
    return _resampled(recalls, bootstrap, rankings) | _resampled(precisions, bootstrap, answerable)


def _resampled(
    values: Mapping[str, np.ndarray], bootstrap: Bootstrap, of: Rankings
) -> dict[str, Figure]:
    samples = resampled_means(values, bootstrap, of.clusters)
    return {name: Figure(float(v.mean()), samples[name]) for name, v in values.items() if len(v)}


def _row(suite: str, key: tuple[str, str], figures: Sequence[Figure]) -> dict[str, Any]:
    base = figures[0]
    differences: list[dict[str, float] | None] = [None]
    for other in figures[1:]:
        samples = other.samples - base.samples
        samples = samples[~np.isnan(samples)]
        low, high = interval(samples) or (None, None)
        p = two_sided_p(samples) if len(samples) else None
        differences.append(
            {"difference": other.value - base.value, "low": low, "high": high, "p_two_sided": p}  # type: ignore[dict-item]
        )
    return {
        "suite": suite,
        "set": key[0],
        "head": "uni-modal" if key[1].split()[0] in ("t2t", "i2i", "spearman") else "cross",
        "metric": key[1],
        "values": [f.value for f in figures],
        "differences": differences,
    }

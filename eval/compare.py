"""Models side by side, query by query: paired differences and how sure they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from typing_extensions import TypedDict

from cusa.data.errors import RunError
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.evaluators.retrieval.coco import PROTOCOL_METRICS
from cusa.eval.metrics.bootstrap import LEVEL, Bootstrap, interval, resampled_means, two_sided_p
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman, spearman
from cusa.eval.metrics.per_query import Rankings, Ties
from cusa.eval.metrics.recalls import recall_sum
from cusa.eval.queries import Queries

_UNI_MODAL = ("t2t", "i2i", "sts")
_PRECISIONS = ("r_precision", "map_at_r")
_DEFAULT_PROTOCOLS = ("retrieval", "unimodal")  # those of a data set's own labels


@dataclass(frozen=True)
class Figure:
    """A metric of one model.

    Attributes:
        value: Its value.
        samples: float64 ``[samples]``: its resampled values.
    """

    value: float
    samples: np.ndarray


class FigureKey(NamedTuple):
    """What a figure is: of which data set, by which kind of head, and which metric."""

    data_set: str
    head: str
    metric: str


class Difference(TypedDict):
    """The difference of a model to the first, with its 95 % interval."""

    difference: float
    low: float | None
    high: float | None
    p_two_sided: float | None


class ComparisonRow(TypedDict):
    """A figure of all models; the first model has no difference."""

    suite: str
    set: str
    head: str
    metric: str
    values: list[float]
    differences: list[Difference | None]


class Comparison(TypedDict):
    """Content of comparison.json (docs/METRICS.md)."""

    format: str
    format_version: list[int]
    models: list[str]
    base: str
    bootstrap: dict[str, float]
    rows: list[ComparisonRow]


def compare(models: Sequence[Mapping[str, Queries]], bootstrap: Bootstrap) -> Comparison:
    """Compute differences of all models to the first, on all that they have in common.

    A model answers across modalities with its cross-modal head and within one with its own
    ``uni_head``. All models' queries are resampled alike, so that a query that is hard for all does
    not count as a difference.

    Args:
        models: Per model its queries by suite; all of a suite were measured on the same data, or
            it is refused.
        bootstrap: How to resample.

    Raises:
        CusaError: If there is nothing in common, or data or the counting of ties differ.
    """
    suites = set(models[0]).intersection(*models[1:])
    if not suites:
        raise RunError(
            "these models have no suite in common; run the same cusa-eval command on each",
            name="suite",
        )
    rows: list[ComparisonRow] = []
    for suite in models[0]:
        if suite in suites:
            queries = [model[suite] for model in models]
            _check_alike(suite, queries)
            rows += _suite_rows(suite, queries, bootstrap)
    if not rows:
        raise RunError(
            "these models have no figure in common; run the same cusa-eval command on each",
            name="figure",
        )
    names = [next(iter(model.values())).name for model in models]
    return {
        "format": "cusa-comparison",
        "format_version": [1, 0],
        "models": names,
        "base": names[0],
        "bootstrap": {"samples": bootstrap.samples, "seed": bootstrap.seed, "level": LEVEL},
        "rows": rows,
    }


def _suite_rows(
    suite: str, queries: Sequence[Queries], bootstrap: Bootstrap
) -> Iterator[ComparisonRow]:
    """Yield the rows of the figures that all models have."""
    figures = [dict(_figures(of_model, bootstrap)) for of_model in queries]
    shared_keys = set(figures[0]).intersection(*figures[1:])
    for key in figures[0]:
        if key in shared_keys:
            yield _row(suite, key, [of_model[key] for of_model in figures])


def _check_alike(suite: str, queries: Sequence[Queries]) -> None:
    """Refuse queries of different data, or of different rules for ties."""
    first = queries[0]
    for second in queries[1:]:
        differences = _different_data_sets(suite, first, second)
        if differences:
            raise RunError(
                f"{first.name} and {second.name} were measured on different data ({suite}: "
                f"{', '.join(differences)}); run cusa-eval again for both on the same",
                name=suite,
            )
        if first.ties != second.ties:
            raise RunError(
                f"{first.name} and {second.name} were measured with ties {first.ties} and "
                f"{second.ties}; run cusa-eval again with the same --ties",
                name="ties",
            )


def _different_data_sets(suite: str, first: Queries, second: Queries) -> list[str]:
    """Name the data sets of the first that the second has differently.

    One that the second lacks is left out of the comparison, where a suite has several; a suite of
    one data set compares nothing else.
    """
    has_several = bool(EVALUATORS[suite].results_file.data_sets)
    differences = []
    for name, fingerprint in first.sets.items():
        if name not in second.sets and has_several:
            continue
        if second.sets.get(name) != fingerprint:
            differences.append(name)
    return differences


def _figures(queries: Queries, bootstrap: Bootstrap) -> Iterator[tuple[FigureKey, Figure]]:
    """Compute the figures of one model, by the head that answers."""
    directions: dict[str, list[dict[str, Figure]]] = {}
    for key, measured in queries.per_query.items():
        data_set, head, *protocols, task = key.split("/")
        is_uni_modal = task in _UNI_MODAL
        if head != (queries.uni_head if is_uni_modal else "cross"):
            continue
        kind_of_head = "uni-modal" if is_uni_modal else "cross"
        protocol = protocols[0] if protocols else ""
        if protocol and protocol not in _DEFAULT_PROTOCOLS:
            data_set = f"{data_set} {protocol}"
        if isinstance(measured, ScoredPairs):
            value = spearman(measured.similarities, measured.human_scores)
            figure = Figure(value, resampled_spearman(measured, bootstrap))
            yield FigureKey(data_set, kind_of_head, "spearman"), figure
            continue
        by_metric = _ranked_figures(measured, queries.ties, bootstrap, protocol)
        for metric, figure in by_metric.items():
            yield FigureKey(data_set, kind_of_head, f"{task} {metric}"), figure
        if task in ("i2t", "t2i") and protocol not in PROTOCOL_METRICS:
            directions.setdefault(data_set, []).append(by_metric)
    for data_set, directions_of_set in directions.items():
        if len(directions_of_set) == 2 and all(directions_of_set):
            yield FigureKey(data_set, "cross", "rsum"), _rsum(directions_of_set)


def _rsum(directions: Sequence[Mapping[str, Figure]]) -> Figure:
    values: list[dict[str, float]] = []
    samples: list[dict[str, np.ndarray]] = []
    for by_metric in directions:
        values.append({})
        samples.append({})
        for metric, figure in by_metric.items():
            values[-1][metric] = figure.value
            samples[-1][metric] = figure.samples
    return Figure(recall_sum(values), recall_sum(samples))


def _ranked_figures(
    rankings: Rankings, ties: Ties, bootstrap: Bootstrap, protocol: str
) -> dict[str, Figure]:
    """Compute recalls over all queries, and precisions over those that have an answer.

    The metrics of ECCV Caption and PMRP count all queries.
    """
    values = rankings.values(ties)
    if protocol in PROTOCOL_METRICS:
        values = {metric: values[metric] for metric in PROTOCOL_METRICS[protocol]}
        return _resample(values, bootstrap, rankings)
    answerable = rankings.answerable()
    precisions = answerable.values(ties)
    for metric in list(values):
        (values if metric in _PRECISIONS else precisions).pop(metric)
    return {
        **_resample(values, bootstrap, rankings),
        **_resample(precisions, bootstrap, answerable),
    }


def _resample(
    values: Mapping[str, np.ndarray], bootstrap: Bootstrap, rankings: Rankings
) -> dict[str, Figure]:
    samples = resampled_means(values, bootstrap, rankings.clusters)
    figures = {}
    for metric, each in values.items():
        if len(each):
            figures[metric] = Figure(float(each.mean()), samples[metric])
    return figures


def _row(suite: str, key: FigureKey, figures: Sequence[Figure]) -> ComparisonRow:
    base = figures[0]
    values = [base.value]
    differences: list[Difference | None] = [None]
    for figure in figures[1:]:
        values.append(figure.value)
        samples = figure.samples - base.samples
        samples = samples[~np.isnan(samples)]
        low, high = interval(samples) or (None, None)
        differences.append(
            {
                "difference": figure.value - base.value,
                "low": low,
                "high": high,
                "p_two_sided": two_sided_p(samples) if len(samples) else None,
            }
        )
    return {
        "suite": suite,
        "set": key.data_set,
        "head": key.head,
        "metric": key.metric,
        "values": values,
        "differences": differences,
    }

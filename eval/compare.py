"""Comparison of models query by query: paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from typing_extensions import TypedDict

from cusa.data.errors import RunError
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.evaluators.retrieval.coco import PROTOCOL_METRICS
from cusa.eval.metrics.bootstrap import LEVEL, Bootstrap, interval, two_sided_p
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman, spearman
from cusa.eval.metrics.per_query import Rankings, Ties
from cusa.eval.metrics.recalls import RECALL_NAMES, recall_sum
from cusa.eval.queries import Queries

_UNI_MODAL = ("t2t", "i2i", "sts")
_PRECISIONS = ("r_precision", "map_at_r")
_DEFAULT_PROTOCOLS = ("retrieval", "unimodal")  # those of a data set's own labels
# float64 [1 + samples]: a metric of one model, followed by its resampled values.
Samples = np.ndarray


class FigureKey(NamedTuple):
    """Identity of a figure: its data set, its kind of head, and its metric."""

    data_set: str
    head: str
    metric: str


class Difference(TypedDict):
    """The difference of a model from the first, with its 95 % interval."""

    difference: float
    low: float | None
    high: float | None
    p_two_sided: float | None


class ComparisonRow(TypedDict):
    """One figure of all models.

    The first model has no difference, nor has a model that lacks the figure.
    """

    suite: str
    set: str
    head: str
    metric: str
    values: list[float | None]
    differences: list[Difference | None]


class Comparison(TypedDict):
    """Content of comparison.json (docs/METRICS.md)."""

    format: str
    format_version: list[int]
    models: list[str]
    base: str
    bootstrap: dict[str, float]
    rows: list[ComparisonRow]


def compare(
    models: Sequence[Mapping[str, Queries]],
    bootstrap: Bootstrap,
) -> Comparison:
    """Compute the differences of all models from the first, in all figures that they share.

    A model answers across modalities with its cross-modal head, and within a modality with its
    ``uni_head``. Each resampling draws the same queries for all models, so that a query that is
    hard for all of them does not blur the differences.

    Args:
        models: The queries of each model by suite.
        bootstrap: Number of resamplings and seed.

    Raises:
        RunError: If the models have no figure in common, or were measured on different data or with
            different rules for ties.
    """
    shared_suites = set(models[0]).intersection(*models[1:])
    if not shared_suites:
        raise _nothing_in_common("suite")
    rows: list[ComparisonRow] = []
    for suite in models[0]:
        if suite in shared_suites:
            for row in suite_rows(suite, list(map(itemgetter(suite), models)), bootstrap):
                if None not in row["values"]:
                    rows.append(row)
    if not rows:
        raise _nothing_in_common("figure")
    names = [next(iter(model.values())).name for model in models]
    return {
        "format": "cusa-comparison",
        "format_version": [1, 0],
        "models": names,
        "base": names[0],
        "bootstrap": {"samples": bootstrap.samples, "seed": bootstrap.seed, "level": LEVEL},
        "rows": rows,
    }


def _nothing_in_common(name: str) -> RunError:
    message = f"these models have no {name} in common; run the same cusa-eval command on each"
    return RunError(message, name=name)


def suite_rows(
    suite: str,
    queries_of_models: Sequence[Queries],
    bootstrap: Bootstrap,
) -> Iterator[ComparisonRow]:
    """Yield a row for each figure of the first model.

    Args:
        suite: The suite.
        queries_of_models: The queries of each model in that suite.
        bootstrap: Number of resamplings and seed.

    Raises:
        RunError: If the models were measured on different data or with different rules for ties.
    """
    _check_alike(suite, queries_of_models)
    figures_of_models = []
    for queries in queries_of_models:
        figures_of_models.append(dict(_figures(queries, bootstrap)))
    for figure_key in figures_of_models[0]:
        yield _row(suite, figure_key, [figures.get(figure_key) for figures in figures_of_models])


def _check_alike(
    suite: str,
    queries: Sequence[Queries],
) -> None:
    """Refuse models measured on different data, or with different rules for ties."""
    first = queries[0]
    for second in queries[1:]:
        differences = _different_data_sets(suite, first, second)
        if differences:
            raise RunError(
                f"{first.name} and {second.name} were measured on different data ({suite}: "
                f"{', '.join(differences)}); run cusa-eval again for both on the same data",
                name=suite,
            )
        if first.ties != second.ties:
            raise RunError(
                f"{first.name} and {second.name} were measured with ties {first.ties} and "
                f"{second.ties}; run cusa-eval again with the same --ties",
                name="ties",
            )


def _different_data_sets(
    suite: str,
    first: Queries,
    second: Queries,
) -> list[str]:
    """Name the data sets of the first model whose content differs for the second.

    In a suite of several data sets, one that the second model lacks is left out of the comparison;
    in a suite of a single data set, it is a difference.
    """
    has_several = bool(EVALUATORS[suite].results_file.data_sets)
    differences = []
    for name, fingerprint in first.sets.items():
        if name not in second.sets and has_several:
            continue
        if second.sets.get(name) != fingerprint:
            differences.append(name)
    return differences


def _figures(
    queries: Queries,
    bootstrap: Bootstrap,
) -> Iterator[tuple[FigureKey, Samples]]:
    """Yield the figures of one model, each from the head that answers."""
    directions: dict[str, list[dict[str, Samples]]] = {}
    for query_key, measured in queries.per_query.items():
        data_set, head, *protocols, task = query_key.split("/")
        answering_head, kind_of_head = "cross", "cross"
        if task in _UNI_MODAL:
            answering_head, kind_of_head = queries.uni_head, "uni-modal"
        if head != answering_head:
            continue
        protocol = protocols[0] if protocols else ""
        if protocol and protocol not in _DEFAULT_PROTOCOLS:
            data_set = f"{data_set} {protocol}"
        if isinstance(measured, ScoredPairs):
            correlation = spearman(measured.similarities, measured.human_scores)
            samples = np.append(correlation, resampled_spearman(measured, bootstrap))
            yield FigureKey(data_set, kind_of_head, "spearman"), samples
            continue
        by_metric = _ranked_figures(measured, queries.ties, bootstrap, protocol)
        for metric, samples in by_metric.items():
            yield FigureKey(data_set, kind_of_head, f"{task} {metric}"), samples
        if task in ("i2t", "t2i") and protocol not in PROTOCOL_METRICS:
            directions.setdefault(data_set, []).append(by_metric)
    for data_set, both_directions in directions.items():
        if len(both_directions) == 2 and all(both_directions):
            yield FigureKey(data_set, "cross", "rsum"), recall_sum(both_directions)


def _ranked_figures(
    rankings: Rankings,
    ties: Ties,
    bootstrap: Bootstrap,
    protocol: str,
) -> dict[str, Samples]:
    """Compute recalls over all queries, and precisions over the answerable ones.

    ECCV Caption and PMRP count all queries in all their metrics.
    """
    if protocol in PROTOCOL_METRICS:
        return _resample(rankings, ties, bootstrap, PROTOCOL_METRICS[protocol])
    recalls = _resample(rankings, ties, bootstrap, RECALL_NAMES)
    return recalls | _resample(rankings.answerable(), ties, bootstrap, _PRECISIONS)


def _resample(
    rankings: Rankings,
    ties: Ties,
    bootstrap: Bootstrap,
    metrics: Sequence[str],
) -> dict[str, Samples]:
    """Compute and resample the metrics that the rankings have."""
    values = rankings.values(ties)
    samples = rankings.resampled(ties, bootstrap)
    figures = {}
    for metric in metrics:
        if metric in values and len(values[metric]):
            figures[metric] = np.append(values[metric].mean(), samples[metric])
    return figures


def _row(
    suite: str,
    figure_key: FigureKey,
    figures: Sequence[Samples | None],
) -> ComparisonRow:
    """Make the row of a figure that the first model has."""
    first = figures[0]
    assert first is not None, "rows are of the first model's figures"
    values: list[float | None] = [float(first[0])]
    differences: list[Difference | None] = [None]
    for figure in figures[1:]:
        values.append(None if figure is None else float(figure[0]))
        differences.append(None if figure is None else _difference(figure - first))
    return {
        "suite": suite,
        "set": figure_key.data_set,
        "head": figure_key.head,
        "metric": figure_key.metric,
        "values": values,
        "differences": differences,
    }


def _difference(paired: Samples) -> Difference:
    samples = paired[1:]
    samples = samples[~np.isnan(samples)]
    low, high = interval(samples) or (None, None)
    return {
        "difference": float(paired[0]),
        "low": low,
        "high": high,
        "p_two_sided": two_sided_p(samples) if len(samples) else None,
    }

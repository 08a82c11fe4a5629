"""Differences of models from the first one in a report, from the ranks that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cusa.data.errors import RunError
from cusa.eval.compare import ComparisonRow, suite_rows
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.queries import Queries
from cusa.eval.report.paired_differences import Difference, SuiteDifferences
from cusa.eval.report.report import ModelReport


def with_differences(
    reports: Sequence[ModelReport],
    queries_of_models: Sequence[Mapping[str, Queries]],
    bootstrap: Bootstrap,
) -> list[ModelReport]:
    """Add to each report the differences from the first model of each suite.

    Earlier results may be of other data, or of another rule for ties; they are not compared.

    Args:
        reports: The models, in the order of the report.
        queries_of_models: Each model's queries by suite.
        bootstrap: Number of resamplings and seed; the samples of the models' own intervals are used
            again.

    Returns:
        The reports with the differences, which are also in their results (docs/METRICS.md).
    """
    compared = list(reports)
    for suite in EVALUATORS:
        positions = [k for k, queries in enumerate(queries_of_models) if suite in queries]
        for position in positions[1:]:
            first = positions[0]
            pair = [
                queries_of_models[first][suite],
                queries_of_models[position][suite],
            ]
            try:
                rows = list(suite_rows(suite, pair, bootstrap))
            except RunError:
                continue
            compared[position] = _compared(compared[position], compared[first], suite, rows)
    return compared


def _compared(
    report: ModelReport,
    first: ModelReport,
    suite: str,
    rows: Sequence[ComparisonRow],
) -> ModelReport:
    figures = []
    for row in rows:
        paired = row["differences"][1]
        if paired is not None:
            figure = {
                "set": row["set"],
                "head": row["head"],
                "metric": row["metric"],
                **paired,
            }
            figures.append(figure)
    content = {
        **report.results[suite],
        "differences": {
            "base": first.name,
            "base_weights_sha256": first.results[suite]["model"].get("weights_sha256"),
            "figures": figures,
        },
    }
    return replace(
        report,
        results={**report.results, suite: content},
        differences={**report.differences, suite: suite_differences(rows, 1, first.name, content)},
    )


def suite_differences(
    rows: Iterable[ComparisonRow],
    position: int,
    base: str,
    content: Mapping[str, Any],
) -> SuiteDifferences:
    """Take one model's differences from the rows of a comparison.

    Args:
        rows: The rows of one suite.
        position: Position of the model in the rows.
        base: Name of the first model.
        content: Content of the model's results file.
    """
    figures = {}
    for row in rows:
        paired = row["differences"][position]
        if paired is not None:
            difference = Difference(paired["difference"], paired["low"], paired["high"])
            figures[row["set"], row["metric"]] = difference
    uni_head = content.get("unimodal_head") or content.get("head") or "cross"
    return SuiteDifferences(base, uni_head, figures)

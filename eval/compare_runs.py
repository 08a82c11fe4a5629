"""Comparison of models that were measured before: comparison.json and comparison.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from cusa.data.errors import RunError, SettingError
from cusa.data.shell import shell_command
from cusa.eval.compare import Comparison, compare
from cusa.eval.differences import suite_differences
from cusa.eval.evaluate import check_writable, write_pages
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.queries import Queries
from cusa.eval.report.paired_differences import SuiteDifferences
from cusa.eval.report.report import ModelReport
from cusa.eval.results import distinct_names, read_queries, read_results, write_json
from cusa.train.saving.run_dir import begun


def compare_measured(
    models: Sequence[Path],
    bootstrap: int,
    seed: int,
    out: Path | None,
    latex: bool,
) -> tuple[Comparison, dict[str, list[Path]]]:
    """Compare models that were measured before, and write comparison.json and comparison.html.

    Args:
        models: Run directories, or folders of results; all are compared with the first.
        bootstrap: Number of resamplings.
        seed: Seed of the resamplings.
        out: Folder to write to; ``None`` for ``eval`` beside the first model.
        latex: Whether to write comparison.tex, too.

    Returns:
        The content of comparison.json; and the files written, by kind.

    Raises:
        CusaError: If there are fewer than two models, one of them was not measured, or they were
            measured on different data.
    """
    if len(models) < 2:
        raise SettingError(
            "compare takes at least two models; name another run or folder of results",
            name="models",
        )
    folders = list(map(_results_folder, models))
    out = out or _default_folder(folders[0])
    check_writable(out)

    results, queries = [], []
    names, locations = [], []
    for folder in folders:
        results_by_suite = _by_suite(folder, read_results)
        results.append(results_by_suite)
        queries.append(_by_suite(folder, read_queries))
        names.append(next(iter(results_by_suite.values()))["name"])
        locations.append(folder.parent if _is_in_run(folder) else folder)
    titles = distinct_names(names, locations)
    titled_queries = list(map(_titled, queries, titles))
    comparison = compare(titled_queries, Bootstrap(bootstrap, seed))

    comparison_file = out / "comparison.json"
    write_json(comparison_file, comparison)
    written = {"comparison": [comparison_file]}
    reports = []
    for position, (title, contents) in enumerate(zip(titles, results, strict=True)):
        differences = _differences(comparison, position, contents)
        reports.append(ModelReport(title, contents, differences))
    write_pages(out, reports, written, latex, comparison)
    return comparison, written


def _differences(
    comparison: Comparison,
    position: int,
    contents: Mapping[str, Any],
) -> dict[str, SuiteDifferences]:
    """Take a model's differences from the first one, by suite; the first has none."""
    differences = {}
    for suite, rows in groupby(comparison["rows"], itemgetter("suite")):
        if position > 0:
            base, content = comparison["base"], contents[suite]
            differences[suite] = suite_differences(rows, position, base, content)
    return differences


def _results_folder(model: Path) -> Path:
    """Return the folder of a model's results: the given folder, or ``eval`` in it.

    Raises:
        RunError: If there are no results; the message says how to get them.
    """
    for folder in (model / "eval", model):
        for evaluator in EVALUATORS.values():
            if (folder / evaluator.results_file.name).is_file():
                return folder
    problem = "holds no results of cusa-eval" if model.exists() else "does not exist"
    remedy = "pass a run that cusa-eval has measured, or a folder of its results"
    if begun(model):
        remedy = f"measure it first: {shell_command('cusa-eval', '--run', model)}"
    raise RunError(f"{model} {problem}; {remedy}", path=model)


def _default_folder(first: Path) -> Path:
    """Return the folder ``eval`` beside the first model."""
    first = first.resolve()
    if _is_in_run(first) or first.parent.name == "eval":
        return first.parent.parent / "eval"
    return first.parent / "eval"


def _is_in_run(folder: Path) -> bool:
    return folder.name == "eval" and begun(folder.parent)


def _by_suite(
    folder: Path,
    read: Callable[[Path, str], Any],
) -> dict[str, Any]:
    """Read the results, or the queries, of every suite that measured a model."""
    contents = {}
    for suite in EVALUATORS:
        content = read(folder, suite)
        if content is not None:
            contents[suite] = content
    return contents


def _titled(
    queries: Mapping[str, Queries],
    title: str,
) -> dict[str, Queries]:
    """Return a model's queries by suite under another name of the model."""
    return {suite: replace(suite_queries, name=title) for suite, suite_queries in queries.items()}

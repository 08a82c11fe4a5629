"""Models that were measured before, side by side: comparison.json and comparison.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cusa.data.errors import RunError, SettingError
from cusa.data.shell import shell_command
from cusa.eval.compare import Comparison, compare
from cusa.eval.evaluate import check_writable, write_pages
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.queries import Queries
from cusa.eval.report.report import ModelReport
from cusa.eval.results import distinct_names, read_queries, read_results, write_json
from cusa.train.saving.run_dir import begun


@dataclass(frozen=True)
class _MeasuredModel:
    """The results of a model, and the queries behind them, by suite."""

    folder: Path
    results: Mapping[str, Mapping[str, Any]]
    queries: Mapping[str, Queries]

    @property
    def name(self) -> str:
        """The name in its results; those of all suites have the same."""
        return next(iter(self.results.values()))["name"]

    @property
    def place(self) -> Path:
        """The run that the results lie in, or their own folder."""
        return self.folder.parent if _is_in_run(self.folder) else self.folder

    def queries_as(self, name: str) -> dict[str, Queries]:
        """The queries, under another name of the model."""
        return {suite: replace(queries, name=name) for suite, queries in self.queries.items()}


def compare_measured(
    models: Sequence[Path], bootstrap: int, seed: int, out: Path | None, latex: bool
) -> tuple[Comparison, dict[str, list[Path]]]:
    """Compare models that were measured before; writes comparison.json and comparison.html.

    Args:
        models: Run directories, or folders of results; the first is what the others are compared
            to.
        bootstrap: Resamplings.
        seed: Their seed.
        out: Folder of what is written; ``None``: ``eval`` beside the first.
        latex: Whether to write comparison.tex.

    Returns:
        Content of comparison.json; and files by what they are.

    Raises:
        CusaError: If one was not measured, or they were measured on different data.
    """
    if len(models) < 2:
        raise SettingError(
            "compare takes at least two models; name another run or folder of results", name="MODEL"
        )
    folders = list(map(_results_folder, models))
    out = out or _default_folder(folders[0])
    check_writable(out)

    measured = list(map(_read, folders))
    names = distinct_names([model.name for model in measured], [model.place for model in measured])
    reports, queries_of_models = [], []
    for model, name in zip(measured, names, strict=True):
        reports.append(ModelReport(name, model.results))
        queries_of_models.append(model.queries_as(name))
    comparison = compare(queries_of_models, Bootstrap(bootstrap, seed))

    path = out / "comparison.json"
    write_json(path, comparison)
    written = {"comparison": [path]}
    write_pages(out, reports, written, latex, comparison)
    return comparison, written


def _results_folder(model: Path) -> Path:
    """Return the folder of a model's results: it, or ``eval`` in it.

    Raises:
        RunError: If there are none; says how to make them.
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
    """Return ``eval`` beside the first model."""
    first = first.resolve()
    if _is_in_run(first) or first.parent.name == "eval":
        return first.parent.parent / "eval"
    return first.parent / "eval"


def _is_in_run(folder: Path) -> bool:
    return folder.name == "eval" and begun(folder.parent)


def _read(folder: Path) -> _MeasuredModel:
    """Read the results of every suite that a model was measured by."""
    results, queries = {}, {}
    for suite in EVALUATORS:
        content = read_results(folder, suite)
        if content is not None:
            results[suite] = content
    for suite in results:
        of_suite = read_queries(folder, suite)
        if of_suite is not None:
            queries[suite] = of_suite
    return _MeasuredModel(folder, results, queries)

"""Models that were measured before, side by side: comparison.json and comparison.html."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError, RunError
from cusa.data.shell import shell_command
from cusa.eval.compare import compare
from cusa.eval.evaluate import check_writable, write_pages
from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.queries import SUITES, Queries, Suite
from cusa.eval.report.report import RunReport
from cusa.eval.results import FILES, distinct_names, read_queries, read_results, write_json
from cusa.train.saving.run_dir import begun


def compare_measured(
    models: Sequence[Path], bootstrap: int, seed: int, out: Path | None, latex: bool
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Compare models that were measured before; writes comparison.json and comparison.html.

    Args:
        models: Run directories, or folders of results; the first is what the others are compared
            to.
        bootstrap: Resamplings.
        seed: Their seed.
        out: Folder of what is written; ``None``: ``eval`` beside the first.
        latex: Whether to write comparison.tex.

    Raises:
        CusaError: If one was not measured, or they were measured on different data.
    """
    if len(models) < 2:
        raise CusaError("compare takes at least two models; name another run or folder of results")
    folders = [_results_folder(model) for model in models]
    first = folders[0].resolve()
    is_among_results = _is_of_a_run(first) or first.parent.name == "eval"
    out = out or (first.parent.parent if is_among_results else first.parent) / "eval"
    check_writable(out)
    results = [_measured_suites(folder) for folder in folders]
    places = [folder.parent if _is_of_a_run(folder) else folder for folder in folders]
    names = distinct_names([next(iter(suites.values()))["name"] for suites in results], places)
    queries: list[dict[Suite, Queries]] = []
    reports = []
    for folder, suites, name in zip(folders, results, names, strict=True):
        queries.append(_named_queries(folder, suites, name))
        figures = (suites.get("retrieval"), suites.get("images"), suites.get("sts"))
        reports.append(RunReport(name, *figures))
    content = compare(queries, Bootstrap(bootstrap, seed))
    written: dict[str, list[Path]] = {}
    write_json(out / "comparison.json", content)
    written["comparison"] = [out / "comparison.json"]
    write_pages(out, reports, written, latex, content)
    return content, written


def _results_folder(model: Path) -> Path:
    """The folder of a model's results: ``eval`` of a run, or the folder itself.

    Raises:
        RunError: If there are none; says how to make them.
    """
    for folder in (model / "eval", model):
        if any((folder / FILES[suite]).is_file() for suite in SUITES):
            return folder
    problem = "holds no results of cusa-eval" if model.exists() else "does not exist"
    remedy = "pass a run that cusa-eval has measured, or a folder of its results"
    if begun(model):
        remedy = f"measure it first: {shell_command('cusa-eval', '--run', model)}"
    raise RunError(f"{model} {problem}; {remedy}", path=model)


def _is_of_a_run(folder: Path) -> bool:
    """Whether a folder of results is that of a run."""
    return folder.name == "eval" and begun(folder.parent)


def _measured_suites(folder: Path) -> dict[Suite, dict[str, Any]]:
    """The figures of each suite that was measured."""
    figures = {suite: read_results(folder, suite) for suite in SUITES}
    return {suite: content for suite, content in figures.items() if content is not None}


def _named_queries(folder: Path, suites: Iterable[Suite], name: str) -> dict[Suite, Queries]:
    """What each suite's queries got, under the name that the model has in the comparison."""
    named: dict[Suite, Queries] = {}
    for suite in suites:
        queries = read_queries(folder, suite)
        if queries is not None:
            named[suite] = replace(queries, name=name)
    return named

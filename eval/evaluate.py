"""An evaluation: find the data, measure each model by every suite, write results and report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError, DataError, RunError, SettingError
from cusa.data.files import atomic_file
from cusa.eval.differences import with_differences
from cusa.eval.evaluators.protocol import Absent
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.evaluators.request import EvalRequest
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.models.embedding_providers import Advance
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.queries import Queries
from cusa.eval.report.latex import latex_tables
from cusa.eval.report.report import Examples, ModelReport, write_report
from cusa.eval.report.tables import NamedResult, Section
from cusa.eval.results import (
    distinct_names,
    keep_results,
    read_queries,
    read_results,
    write_json,
)

Content = Mapping[str, Any]  # content of a results file


@dataclass
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        reports: Results and examples of each model.
        written: Files written, by kind.
        notes: Remarks for the user.
    """

    reports: list[ModelReport] = field(default_factory=list)
    written: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        names = ", ".join(report.name for report in self.reports)
        paths = ", ".join(map(str, chain.from_iterable(self.written.values())))
        return f"<Evaluation of {names}: {paths}>"

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Content of the results files (docs/METRICS.md) by model and suite; not rounded."""
        return {report.name: dict(report.results) for report in self.reports}

    @property
    def report(self) -> Path:
        """The page, ``report.html``."""
        return self.written["report"][0]

    def note(self, text: str) -> None:
        """Add a remark, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)


def _silent(
    task: str,
    done: int,
    total: int,
) -> None:
    """Report no progress."""


def evaluate(request: EvalRequest, advance: Advance = _silent) -> Evaluation:
    """Measure models, and write their results and a report.

    The data are found first, once for all models. Each model is loaded, measured by every suite,
    and released before the next one is loaded.

    Args:
        request: What to measure, and how.
        advance: Called with the progress of the embedding.

    Raises:
        CusaError: If a model or its data cannot be loaded, or models would be measured on different
            data.
    """
    models = _requested_models(request, advance)
    out = request.out or _default_folder(models)
    check_writable(out)
    evaluation = Evaluation()
    data_of_suite = _find_data(request, models, evaluation)
    weights, queries_of_models = [], []
    for model in models:
        _check_replaceable(model)
        report, queries = _measure(model, data_of_suite, request, evaluation)
        weights.append(model.provider.description["weights_sha256"])
        evaluation.reports.append(report)
        queries_of_models.append(queries)
        _check_same_data(evaluation.reports)
        model.release()
    if not evaluation.written:
        raise DataError(f"nothing to measure: {'; '.join(evaluation.notes)}")

    with_earlier = _with_earlier(evaluation.reports, models, weights)
    compared = _compared(with_earlier, models, queries_of_models, request)
    _keep_differences(compared, models, evaluation)
    n_unreadable = write_pages(out, compared, evaluation.written, request.latex)
    if n_unreadable:
        evaluation.note(
            f"{n_unreadable} images that the report shows could not be read; pass --image-root"
        )
    return evaluation


def _requested_models(
    request: EvalRequest,
    advance: Advance,
) -> list[EvaluatedModel]:
    """Describe the models without loading them; refuse two that would share a results folder."""
    models = [EvaluatedModel(spec, request.compute, advance) for spec in request.models]
    models += _models_in_files(request, advance)
    names, locations, results_folders = [], [], set()
    for model in models:
        names.append(model.name)
        locations.append(model.run_dir or model.results)
        results_folders.add(model.results.resolve())
        if len(results_folders) < len(names):
            raise RunError(
                f"two models are named {model.name!r}, and {model.results} holds the results of "
                "one; pass each once, or rename a folder",
                path=model.results,
                name=model.name,
            )
    for model, title in zip(models, distinct_names(names, locations), strict=True):
        model.title = title
    return models


def _models_in_files(request: EvalRequest, advance: Advance) -> Iterator[EvaluatedModel]:
    """Yield the models whose embeddings or scores are in files."""
    files = list(filter(None, request.embedding_files))
    if files:
        name = request.name or ", ".join(rows_file.stem for rows_file, _ in files)
        yield EvaluatedModel("", request.compute, advance, request.embedding_files, name)
    file = request.score_file
    if file is not None:
        name = request.name or file.path.stem
        yield EvaluatedModel("", request.compute, advance, name=name, score_file=file)


def _default_folder(models: Sequence[EvaluatedModel]) -> Path:
    """Return the folder of the report: a single model's results, else ``eval`` beside the first."""
    first = models[0]
    if len(models) == 1:
        return first.results
    beside = first.run_dir.parent if first.run_dir else first.results.parent.parent
    return beside / "eval"


def _find_data(
    request: EvalRequest,
    models: Sequence[EvaluatedModel],
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Find the data of each suite; leave out, or refuse, a suite without data."""
    run_dirs = [model.run_dir for model in models if model.run_dir]
    splits = SplitFinder(request.split, run_dirs)
    data_of_suite = {}
    for suite in request.suites:
        data = EVALUATORS[suite].find(request, splits)
        if isinstance(data, Absent):
            _note_or_raise(data, request, evaluation)
        else:
            data_of_suite[suite] = data
    return data_of_suite


def _note_or_raise(
    absent: Absent,
    request: EvalRequest,
    evaluation: Evaluation,
) -> None:
    if absent.error is not None and not request.skip_absent:
        raise absent.error
    evaluation.note(absent.note)


def _measure(
    model: EvaluatedModel,
    data_of_suite: Mapping[str, Any],
    request: EvalRequest,
    evaluation: Evaluation,
) -> tuple[ModelReport, dict[str, Queries]]:
    """Load a model, measure it by every suite that has data, and write its results.

    Returns:
        Its report; and its queries by suite, with those of earlier calls in the same file.
    """
    results: dict[str, Content] = {}
    queries_by_suite: dict[str, Queries] = {}
    examples = Examples()
    if model.note:
        evaluation.note(model.note)
    for suite, data in data_of_suite.items():
        result = EVALUATORS[suite].run(model, data, request.options)
        if isinstance(result, Absent):
            _note_or_raise(result, request, evaluation)
            continue
        for note in result.notes:
            evaluation.note(note)
        queries = Queries(
            model.name,
            model.provider.uni_head,
            request.options.scoring.ties,
            result.fingerprints,
            result.per_query,
        )
        results[suite], queries_by_suite[suite] = _write_results(
            model, suite, result.content, queries, evaluation
        )
        examples = result.examples or examples
    return ModelReport(model.title, results, **vars(examples)), queries_by_suite


def _write_results(
    model: EvaluatedModel,
    suite: str,
    content: Content,
    queries: Queries,
    evaluation: Evaluation,
) -> tuple[dict[str, Any], Queries]:
    """Write a suite's results and queries beside the model, and return them as written."""
    file = EVALUATORS[suite].results_file
    results_file = model.results / file.name
    before = read_results(model.results, suite) or {}
    written, kept_queries = keep_results(model.results, suite, content, queries)
    remaining = written.get(file.data_sets, {})
    replaced = [name for name in before.get(file.data_sets, {}) if name not in remaining]
    if replaced:
        evaluation.note(
            f"{results_file}: replaced the results on {', '.join(replaced)}, which were measured "
            "with other weights or rules"
        )
    evaluation.written.setdefault("metrics", []).append(results_file)
    return written, kept_queries


def _compared(
    reports: Sequence[ModelReport],
    models: Sequence[EvaluatedModel],
    measured: Sequence[Mapping[str, Queries]],
    request: EvalRequest,
) -> list[ModelReport]:
    """Add the differences from the first model, also to the results of earlier calls.

    Args:
        reports: The models with their results.
        models: The models.
        measured: The queries of each model that were measured in this call, by suite.
        request: What was measured, and how.
    """
    queries_of_models = []
    for report, model, queries in zip(reports, models, measured, strict=True):
        earlier_suites = set(report.results).difference(queries)
        earlier = _earlier_queries(model.results, earlier_suites)
        queries_of_models.append({**earlier, **queries})
    return with_differences(reports, queries_of_models, request.options.scoring.bootstrap)


def _earlier_queries(folder: Path, suites: Iterable[str]) -> dict[str, Queries]:
    """Read the queries of earlier results; those that are damaged or missing are left out."""
    queries_by_suite = {}
    for suite in suites:
        with contextlib.suppress(CusaError):
            queries = read_queries(folder, suite)
            if queries is not None:
                queries_by_suite[suite] = queries
    return queries_by_suite


def _keep_differences(
    compared: Sequence[ModelReport],
    models: Sequence[EvaluatedModel],
    evaluation: Evaluation,
) -> None:
    """Add the differences from the first model to the results of this call."""
    reports = []
    for report, with_all, model in zip(evaluation.reports, compared, models, strict=True):
        results = {}
        for suite in report.results:
            content = with_all.results[suite]
            results[suite] = content
            if suite in with_all.differences:
                file_name = EVALUATORS[suite].results_file.name
                write_json(model.results / file_name, content)
        report = replace(
            report,
            results=results,
            differences=with_all.differences,
        )
        reports.append(report)
    evaluation.reports = reports


def _with_earlier(
    reports: Sequence[ModelReport],
    models: Sequence[EvaluatedModel],
    weights: Sequence[str],
) -> list[ModelReport]:
    """Add earlier results of the same weights, suite by suite, where all models are comparable."""
    completed = list(reports)
    for suite in EVALUATORS:
        with_suite = []
        for report, model, weights_sha256 in zip(completed, models, weights, strict=True):
            content = report.results.get(suite) or read_results(model.results, suite)
            if content and content["model"].get("weights_sha256") == weights_sha256:
                report = replace(report, results={**report.results, suite: content})
            with_suite.append(report)
        if _first_difference(suite, with_suite) is None:
            completed = with_suite
    return completed


def _first_difference(
    suite: str,
    reports: Sequence[ModelReport],
) -> tuple[Content, Content, str] | None:
    """Return two results of a suite that were measured on different data, and what differs."""
    contents = [report.results[suite] for report in reports if suite in report.results]
    for content in contents[1:]:
        difference = EVALUATORS[suite].difference_of_data(contents[0], content)
        if difference:
            return contents[0], content, difference
    return None


def _check_same_data(reports: Sequence[ModelReport]) -> None:
    """Refuse to report models side by side that were measured on different data."""
    for suite in EVALUATORS:
        difference = _first_difference(suite, reports)
        if difference is not None:
            first, second, difference_in_words = difference
            raise RunError(
                f"{second['name']} and {first['name']} cannot be compared: they are measured on "
                f"different data ({difference_in_words}); pass --embeddings with one store for all",
                name=second["name"],
            )


def _check_replaceable(model: EvaluatedModel) -> None:
    """Refuse a model that would overwrite the results of another model of the same name."""
    if model.run_dir is not None:
        return
    description = model.provider.description
    for suite in EVALUATORS:
        content = read_results(model.results, suite)
        if content is None:
            continue
        measured = content["model"]
        is_same = False
        for key in ("source", "weights_sha256"):
            is_same |= measured.get(key) == description[key]
        if measured and not is_same:
            raise RunError(
                f"{model.results} holds the results of another model of the same name "
                f"({measured.get('source')}); pass --name (with --image-embeddings or "
                "--text-embeddings), rename the model's folder, or remove those results",
                path=model.results,
                name="name",
            )


def check_writable(out: Path) -> None:
    """Refuse, before anything is measured, a folder that cannot be written to.

    Raises:
        SettingError: If it is no folder, or not writable.
    """
    path = out.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise SettingError(
            f"{path} is no folder; pass another: --out FOLDER", path=path, name="out"
        )
    if not os.access(path, os.W_OK):
        raise SettingError(
            f"{path} is not writable; pass another: --out FOLDER", path=path, name="out"
        )


def make_sections(reports: Sequence[ModelReport]) -> list[Section]:
    """Make the tables of all suites, in the order of the report.

    Args:
        reports: The models, in the order of the report.
    """
    sections: list[Section] = []
    for suite, evaluator in EVALUATORS.items():
        results = []
        for report in reports:
            content = report.results.get(suite)
            differences = report.differences.get(suite)
            results.append(NamedResult(report.name, content, differences))
        sections += filter(None, evaluator.tables(results))
    return sections


def write_pages(
    out: Path,
    reports: Sequence[ModelReport],
    written: dict[str, list[Path]],
    latex: bool,
    comparison: Content | None = None,
) -> int:
    """Write report.html or comparison.html, and its tables for LaTeX.

    Args:
        out: The folder to write to.
        reports: The models, in the order of the report.
        written: Files written, by kind; the files of this call are added.
        latex: Whether to write the tables for LaTeX, too.
        comparison: Content of comparison.json, if the page is a comparison.

    Returns:
        The number of images on the page that could not be read.
    """
    page, tables = out / "report.html", out / "tables.tex"
    if comparison is not None:
        page, tables = out / "comparison.html", out / "comparison.tex"
    sections = make_sections(reports)
    n_unreadable = write_report(page, reports, sections, comparison)
    written["report"] = [page.resolve()]
    if latex:
        with atomic_file(tables) as temporary:
            temporary.write_text(latex_tables(sections))
        written["tables"] = [tables]
    return n_unreadable

"""A whole evaluation: find data, measure each model by every suite, write results and a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError, RunError, SettingError
from cusa.data.files import atomic_file
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
from cusa.eval.results import distinct_names, keep_results, read_results

Content = Mapping[str, Any]  # of a file of results


@dataclass
class Evaluation:
    """What an evaluation made.

    Attributes:
        reports: What was measured of each model.
        written: Files by what they are.
        notes: What its user should know.
    """

    reports: list[ModelReport] = field(default_factory=list)
    written: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        if text not in self.notes:
            self.notes.append(text)


def _silent(
    task: str,
    done: int,
    total: int,
) -> None:
    """Tell nobody how far an evaluation is."""


def evaluate(request: EvalRequest, advance: Advance = _silent) -> Evaluation:
    """Measure models, write their results and a report.

    Data are found first, once for all models. Each model is loaded, measured by every suite, and
    released before the next one is loaded.

    Args:
        request: What to measure, and how.
        advance: Told how far it is.

    Raises:
        CusaError: If a model or data cannot be had, or models were measured on different data.
    """
    models = _requested_models(request, advance)
    out = request.out or _default_folder(models)
    check_writable(out)

    evaluation = Evaluation()
    data_of_suite = _find_data(request, models, evaluation)
    weights = []
    for model in models:
        _check_replaceable(model)
        report = _measure(model, data_of_suite, request, evaluation)
        weights.append(model.provider.description["weights_sha256"])
        evaluation.reports.append(report)
        _check_same_data(evaluation.reports)
        model.release()
    if not evaluation.written:
        raise DataError(f"nothing to measure: {'; '.join(evaluation.notes)}")

    with_earlier = _with_earlier(evaluation.reports, models, weights)
    n_unreadable = write_pages(out, with_earlier, evaluation.written, request.latex)
    if n_unreadable:
        evaluation.note(
            f"{n_unreadable} images that the report shows could not be read; pass --image-root"
        )
    return evaluation


def _requested_models(
    request: EvalRequest,
    advance: Advance,
) -> list[EvaluatedModel]:
    """Name the models; none of them is loaded, and none overwrites another's results."""
    models = [EvaluatedModel(spec, request.compute, advance) for spec in request.models]
    files = list(filter(None, request.embedding_files))
    if files:
        name = request.name or ", ".join(rows_file.stem for rows_file, _ in files)
        model = EvaluatedModel("", request.compute, advance, request.embedding_files, name)
        models.append(model)
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


def _default_folder(models: Sequence[EvaluatedModel]) -> Path:
    """The folder of the report: the model's results, or ``eval`` beside the first of several."""
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
    """Find what each suite measures models on; one without data is left out, or refused."""
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
) -> ModelReport:
    """Load a model, measure it by every suite, and write its results."""
    results: dict[str, Content] = {}
    examples = Examples()
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
        results[suite] = _keep(model, suite, result.content, queries, evaluation)
        examples = result.examples or examples
    return ModelReport(model.title, results, **vars(examples))


def _keep(
    model: EvaluatedModel,
    suite: str,
    content: Content,
    queries: Queries,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Write a suite's results beside the model; returns them as written."""
    file = EVALUATORS[suite].results_file
    results_file = model.results / file.name
    before = read_results(model.results, suite) or {}
    written = keep_results(model.results, suite, content, queries)
    remaining = written.get(file.data_sets, {})
    replaced = [name for name in before.get(file.data_sets, {}) if name not in remaining]
    if replaced:
        evaluation.note(
            f"{results_file}: {', '.join(replaced)}, measured before by other weights or rules, "
            "made way"
        )
    evaluation.written.setdefault("metrics", []).append(results_file)
    return written


def _with_earlier(
    reports: Sequence[ModelReport],
    models: Sequence[EvaluatedModel],
    weights: Sequence[str],
) -> list[ModelReport]:
    """Add what was measured before of the same weights, where it can stand side by side."""
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
    """Find two results of a suite that were measured on different data, and what differs."""
    contents = [report.results[suite] for report in reports if suite in report.results]
    for content in contents[1:]:
        difference = EVALUATORS[suite].difference_of_data(contents[0], content)
        if difference:
            return contents[0], content, difference
    return None


def _check_same_data(reports: Sequence[ModelReport]) -> None:
    """Refuse to set side by side what was not measured on the same images and captions."""
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
    """Refuse a model that would overwrite the results of another one of its name."""
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
                f"{model.results} holds the results of another model of that name "
                f"({measured.get('source')}); pass --name with --image-embeddings or "
                "--text-embeddings, rename the model's folder, or remove those results",
                path=model.results,
                name="--name",
            )


def check_writable(out: Path) -> None:
    """Say before anything is measured that its results cannot be written.

    Raises:
        CusaError: If they cannot.
    """
    path = out.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise SettingError(
            f"{path} is no folder; pass another: --out FOLDER", path=path, name="--out"
        )
    if not os.access(path, os.W_OK):
        raise SettingError(
            f"{path} is not writable; pass another: --out FOLDER", path=path, name="--out"
        )


def make_sections(reports: Sequence[ModelReport]) -> list[Section]:
    """Make the tables of all suites, in the order shown.

    Args:
        reports: Models, in the order shown.
    """
    sections: list[Section] = []
    for suite, evaluator in EVALUATORS.items():
        results = [NamedResult(report.name, report.results.get(suite)) for report in reports]
        sections += filter(None, evaluator.tables(results))
    return sections


def write_pages(
    out: Path,
    reports: Sequence[ModelReport],
    written: dict[str, list[Path]],
    latex: bool,
    comparison: Content | None = None,
) -> int:
    """Write report.html or comparison.html, and the same tables for LaTeX.

    Args:
        out: Where to.
        reports: Models, in the order shown.
        written: Told which files are written.
        latex: Whether to write the tables for LaTeX.
        comparison: Content of comparison.json, if this is one.

    Returns:
        How many images that the page shows could not be read.
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

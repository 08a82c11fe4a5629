"""A whole evaluation: each model through each suite, results written beside it, and one report for all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.eval.evaluators.retrieval.coco import Judgements
from cusa.eval.evaluators.retrieval.teacher_scores import teacher_scores, teachers_know_less
from cusa.eval.evaluators.sts.cxc import CxcTask, find_cxc
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.relevance import Task
from cusa.eval.models.embedding_providers import Advance, FileSource
from cusa.eval.models.evaluated_models import Machine, Subject, embeddings_of, teachers_of
from cusa.eval.queries import SUITES, Judged, Queries, Suite
from cusa.eval.report.failures import likely_false_negatives, worst_failures
from cusa.eval.report.gallery import make_gallery
from cusa.eval.report.latex import latex_tables
from cusa.eval.report.paper import paper_retrieval, paper_row
from cusa.eval.report.report import RunReport, write_report
from cusa.eval.request import Plan, asked_image_sets, asked_sts_tasks, sts_folder
from cusa.eval.results import FILES, FORMATS, distinct_names, keep_results, read_results
from cusa.eval.splits import FoundSplit, SplitFinder
from cusa.eval.suites import (
    RetrievalData,
    check_counts,
    check_judged,
    measure_images,
    measure_retrieval,
    measure_sts,
)
from cusa.train.saving.run_dir import read_history


@dataclass
class Measured:
    """What an evaluation made.

    Attributes:
        reports: Of each model.
        written: Files by what they are.
        notes: What its user should know.
    """

    reports: list[RunReport] = field(default_factory=list)
    written: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(plan: Plan, advance: Advance = lambda what, done, total: None) -> Measured:
    """Measure models, write their results and a report.

    What they are measured on is found first, once for all. Each model is loaded, measured by every
    suite, and released before the next one is loaded.

    Args:
        plan: What, and how.
        advance: Told how far it is.

    Raises:
        CusaError: If a model or data cannot be had, or models were measured on different data.
    """
    machine = Machine(
        plan.device, plan.checkpoint, plan.batch_size, plan.workers, plan.readers, advance
    )
    subjects = _subjects(plan, machine)
    _check_apart(subjects)
    out = plan.out or (subjects[0].results if len(subjects) == 1 else _beside(subjects[0]))
    check_writable(out)
    evaluation = _Evaluation(plan, machine, subjects)
    names = distinct_names([s.name for s in subjects], [s.run_dir or s.results for s in subjects])
    for subject, name in zip(subjects, names, strict=True):
        evaluation.measure(subject, name)
        subject.release()
    measured = evaluation.measured
    if not measured.written:
        raise CusaError(f"nothing to measure: {'; '.join(measured.notes)}")
    reports = _with_earlier(measured.reports, evaluation.weights, subjects)
    if unreadable := write_pages(out, reports, measured.written, plan.latex):
        measured.notes.append(
            f"{unreadable} images that the report shows could not be read; pass --image-root"
        )
    return measured


def _subjects(plan: Plan, machine: Machine) -> list[Subject]:
    subjects = [Subject(spec, machine) for spec in plan.models]
    if any(plan.files):
        name = plan.name or ", ".join(file[0].stem for file in plan.files if file is not None)
        subjects.append(Subject("", machine, lambda: FileSource(*plan.files, name=name), name))
    return subjects


class _Evaluation:
    """What models are measured on, and what was measured of them so far.

    Args:
        plan: What is asked for.
        machine: How embeddings are computed.
        subjects: The models; none of them is loaded here.

    Attributes:
        measured: Reports, files and notes.
        weights: sha256 of the weights of each model that was measured, in order.

    Raises:
        CusaError: If there is nothing to measure them on.
    """

    def __init__(self, plan: Plan, machine: Machine, subjects: Sequence[Subject]) -> None:
        self._plan, self._machine = plan, machine
        self.measured = Measured()
        self.weights: list[str] = []
        notes = self.measured.notes
        self._image_sets = asked_image_sets(plan, notes) if "images" in plan.suites else []
        self._sts_tasks = asked_sts_tasks(plan, notes) if "sts" in plan.suites else []
        self._cxc = find_cxc(sts_folder(plan)) if "sts" in plan.suites else {}
        self._judgements = Judgements(plan.pmrp)
        self._splits = SplitFinder(plan.data, [s.run_dir for s in subjects if s.run_dir])
        if "retrieval" in plan.suites and not plan.skip_absent:
            for subject in subjects:  # what is missing is said before anything is measured
                check_counts(self._splits.find(subject.run_dir).data, plan.measure.allow_partial)

    def measure(self, subject: Subject, name: str) -> None:
        """Load a model, measure it by every suite, and write its results.

        Args:
            subject: The model.
            name: What it is called beside the others.
        """
        _check_replaceable(subject)
        report = RunReport(name)
        for suite in self._plan.suites:
            if suite == "retrieval":
                report = self._retrieval(report, subject)
            elif suite == "images" and self._image_sets:
                report = self._images(report, subject)
            elif suite == "sts":
                report = self._sts(report, subject)
        self.weights.append(subject.source.description["weights_sha256"])
        self.measured.reports.append(report)
        _check_same_split(self.measured.reports)

    def _lacks(self, suite: str, report: RunReport, missing: Iterable[str]) -> bool:
        """Whether a suite is left out, with a note, since a model embeds nothing of a kind."""
        absent = sorted(missing) if self._plan.skip_absent else []
        if absent:
            self._note(f"no {suite} for {report.name}: it embeds no {'s and no '.join(absent)}s")
        return bool(absent)

    def _note(self, text: str) -> None:
        if text not in self.measured.notes:
            self.measured.notes.append(text)

    def _retrieval(self, report: RunReport, subject: Subject) -> RunReport:
        plan = self._plan
        if self._lacks("retrieval", report, {"image", "text"} - subject.source.modalities):
            return report
        try:
            split = self._splits.find(subject.run_dir)
        except CusaError as error:
            if not plan.skip_absent:
                raise
            self._note(f"no retrieval for {report.name}: {error}")
            return report
        data, uni_head = split.data, subject.source.uni_head
        check_counts(data, plan.measure.allow_partial)
        embeddings = embeddings_of(subject, split, self._machine)
        measured, ranked = measure_retrieval(
            embeddings, data, uni_head, plan.measure, self._judgements
        )
        for note in measured["notes"]:
            self._note(note)
        teachers = teachers_of(subject, split.store, data.split.name)
        scores = teacher_scores(teachers, embeddings, data.split, plan.measure.scoring)
        metrics = _metrics(subject, plan.checkpoint, measured, scores)
        if explanation := teachers_know_less(metrics):
            self._note(f"{report.name}: {explanation}")
        set_name = f"{data.dataset.replace('/', '_')} {data.split.name}"
        fingerprint = f"{data.split.fingerprint} {metrics['n_images']} {metrics['n_captions']}"
        queries = {f"{set_name}/{key}": rankings for key, rankings in ranked.items()}
        self._keep(subject, "retrieval", metrics, {set_name: fingerprint}, queries)
        shown = self._shown(subject, split, embeddings)
        return replace(report, metrics=metrics, history=self._history(subject), **shown)

    def _shown(
        self, subject: Subject, split: FoundSplit, embeddings: SplitEmbeddings
    ) -> dict[str, Any]:
        """Queries with their hits, failures, and likely false negatives, as the report shows them."""
        uni_head, n_shown, data = subject.source.uni_head, self._plan.gallery, split.data
        head_of: dict[Task, Head] = {
            "i2t": "cross",
            "t2i": "cross",
            "t2t": uni_head,
            "i2i": uni_head,
        }
        seed = self._plan.measure.scoring.bootstrap.seed
        teachers = teachers_of(subject, split.store, data.split.name)
        return {
            "gallery": make_gallery(
                embeddings, data.split, data.image_root, head_of, n_shown, seed
            ),
            "failures": worst_failures(embeddings, data.split, data.image_root, head_of, n_shown),
            "false_negatives": likely_false_negatives(
                embeddings, data.split, teachers, data.image_root, 2 * n_shown
            ),
        }

    def _history(self, subject: Subject) -> tuple[dict[str, Any], ...]:
        if subject.run_dir is None:
            return ()
        history = read_history(subject.run_dir)
        if history.note:
            self._note(history.note)
        return tuple(history.lines)

    def _images(self, report: RunReport, subject: Subject) -> RunReport:
        if self._lacks("image retrieval", report, {"image"} - subject.source.modalities):
            return report
        measured, queries = measure_images(subject.source, self._image_sets, self._plan.measure)
        content = (
            subject.about(*FORMATS["images"]) | measured | _paper(subject, "image_retrieval_r1")
        )
        sets = {image_set.name: image_set.fingerprint for image_set in self._image_sets}
        return replace(report, images=self._keep(subject, "images", content, sets, queries))

    def _sts(self, report: RunReport, subject: Subject) -> RunReport:
        if self._lacks("sentence similarity", report, {"text"} - subject.source.modalities):
            return report
        cxc = self._judged_by_cxc(report.name, subject)
        if not self._sts_tasks and not cxc:
            return report
        measured, judged = measure_sts(subject.source, self._sts_tasks, cxc, self._plan.measure)
        content = subject.about(*FORMATS["sts"]) | measured | _paper(subject, "sts_spearman")
        sets = {task.name: task.fingerprint for task in self._sts_tasks}
        return replace(report, sts=self._keep(subject, "sts", content, sets, judged))

    def _judged_by_cxc(
        self, name: str, subject: Subject
    ) -> dict[str, tuple[CxcTask, RetrievalData]]:
        """The tasks of CxC that a model can answer, with the split that has what they judge."""
        embeds_images = "image" in subject.source.modalities
        able = {kind: task for kind, task in self._cxc.items() if kind == "sts" or embeds_images}
        if unable := [kind for kind in self._cxc if kind not in able]:
            self._note(f"no {' and no '.join(unable)} of CxC for {name}: it embeds no images")
        if not able:
            return {}
        try:
            data = self._splits.find(subject.run_dir).data
            for task in able.values():
                check_judged(task, data)
        except CusaError as error:
            if not self._plan.skip_absent:
                folder = sts_folder(self._plan)
                raise CusaError(
                    f"CxC in {folder}: {error}; or pass a folder without its csv files"
                ) from None
            self._note(f"no CxC for {name}: {error}")
            return {}
        return {kind: (task, data) for kind, task in able.items()}

    def _keep(
        self,
        subject: Subject,
        suite: Suite,
        content: dict[str, Any],
        sets: Mapping[str, str],
        queries: Mapping[str, Rankings] | Mapping[str, Judged],
    ) -> dict[str, Any]:
        """Write a suite's results beside the model; the figures as written."""
        ties = self._plan.measure.scoring.ties
        kept = Queries(subject.name, subject.source.uni_head, ties, sets, dict(queries))
        path = subject.results / FILES[suite]
        before = read_results(subject.results, suite) or {}
        written = keep_results(subject.results, suite, content, kept)
        gone = [
            name
            for key in ("sets", "tasks")
            for name in before.get(key, {})
            if name not in written.get(key, {})
        ]
        if gone:
            self._note(
                f"{path}: {', '.join(gone)}, measured before by other weights or rules, made way"
            )
        self.measured.written.setdefault("metrics", []).append(path)
        return written


def _metrics(
    subject: Subject, checkpoint: str, measured: Mapping[str, Any], teachers: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of metrics.json: what is said of the model, its figures and those of its teachers."""
    origin = subject.origin()
    terms = list(origin.config.loss.terms) if origin else []
    metrics = {
        **subject.about(*FORMATS["retrieval"]),
        "run": str(subject.run_dir) if subject.run_dir else None,
        "checkpoint": checkpoint if origin else None,
        "epoch": origin.epoch if origin else None,
        "step": origin.step if origin else None,
        "loss_terms": terms,
        "teachers": teachers,
        **measured,
    }
    row = paper_retrieval(origin.config.student.name, terms, metrics) if origin else None
    return metrics | ({"paper": row} if row else {})


def _paper(subject: Subject, table: str) -> dict[str, Any]:
    origin = subject.origin()
    row = paper_row(origin.config.student.name, origin.config.loss.terms, table) if origin else None
    return {"paper": row.to_dict()} if row else {}


def _with_earlier(
    reports: Sequence[RunReport], weights: Sequence[str], subjects: Sequence[Subject]
) -> list[RunReport]:
    """With what was measured before of the same weights, where that can stand side by side."""
    names: Mapping[Suite, str] = {"retrieval": "metrics", "images": "images", "sts": "sts"}
    full = []
    for report, own_weights, subject in zip(reports, weights, subjects, strict=True):
        earlier: dict[str, Any] = {}
        for suite, name in names.items():
            content = (
                read_results(subject.results, suite) if getattr(report, name) is None else None
            )
            if content and content["model"].get("weights_sha256") == own_weights:
                earlier[name] = content
        full.append(replace(report, **earlier))
    splits = {str(r.metrics["split_fingerprint"]) for r in full if r.metrics}
    return (
        full
        if len(splits) <= 1
        else [replace(f, metrics=r.metrics) for f, r in zip(full, reports, strict=True)]
    )


def _check_apart(subjects: Sequence[Subject]) -> None:
    """Refuse models that would overwrite each other's results."""
    taken: set[Path] = set()
    for subject in subjects:
        if (folder := subject.results.resolve()) in taken:
            raise CusaError(
                f"two models are named {subject.name!r}, and {subject.results} holds the results of one; pass each "
                "once, or rename a folder"
            )
        taken.add(folder)


def _check_replaceable(subject: Subject) -> None:
    """Refuse a model that would overwrite the results of another one of its name."""
    for suite in () if subject.run_dir else SUITES:
        before = (read_results(subject.results, suite) or {}).get("model", {})
        source, weights = (subject.source.description[key] for key in ("source", "weights_sha256"))
        if before and before.get("source") != source and before.get("weights_sha256") != weights:
            raise CusaError(
                f"{subject.results} holds the results of another model of that name ({before.get('source')}); pass "
                "--name with --image-embeddings or --text-embeddings, rename the model's folder, or remove those "
                "results"
            )


def check_writable(out: Path) -> None:
    """Say before anything is measured that its results cannot be written.

    Raises:
        CusaError: If they cannot.
    """
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise CusaError(
            f"{place} is {'not writable' if place.is_dir() else 'no folder'}; pass another: --out FOLDER"
        )


def _check_same_split(reports: Sequence[RunReport]) -> None:
    """Refuse to set side by side what was not measured on the same images and captions."""
    measured = [r.metrics for r in reports if r.metrics]
    keys = ("split_fingerprint", "n_images", "n_captions")
    for last in measured[1:]:
        first = measured[0]
        if any(first[k] != last[k] for k in keys):
            raise CusaError(
                f"{last['name']} and {first['name']} cannot be compared: they are measured on different data "
                f"({last['n_images']} and {first['n_images']} images, {last['n_captions']} and {first['n_captions']} "
                "captions); pass --embeddings with one store for all"
            )


def _beside(subject: Subject) -> Path:
    """Folder of a report on several models: ``eval`` beside the first."""
    return (subject.run_dir.parent if subject.run_dir else subject.results.parent.parent) / "eval"


def write_pages(
    out: Path,
    reports: Sequence[RunReport],
    written: dict[str, list[Path]],
    latex: bool,
    comparison: dict[str, Any] | None = None,
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
    page, tables = (
        ("report.html", "tables.tex")
        if comparison is None
        else ("comparison.html", "comparison.tex")
    )
    unreadable = write_report(out / page, reports, comparison)
    written["report"] = [(out / page).resolve()]
    if latex:
        with atomic_file(out / tables) as temporary:
            temporary.write_text(latex_tables(reports))
        written["tables"] = [out / tables]
    return unreadable

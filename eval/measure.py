"""A whole evaluation: each model through each suite, results written beside it, and one report for all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.eval.bootstrap import Bootstrap
from cusa.eval.compare import compare
from cusa.eval.failures import likely_false_negatives, worst_failures
from cusa.eval.gallery import make_gallery
from cusa.eval.image_sets import ImageSet
from cusa.eval.latex import latex_tables
from cusa.eval.paper import paper_retrieval, paper_row
from cusa.eval.plan import Plan, asked_image_sets, asked_sts_tasks, judged_by_cxc
from cusa.eval.queries import SUITES, Judged, Queries, Suite
from cusa.eval.rankings import Rankings
from cusa.eval.relevance import Task
from cusa.eval.report import RunReport, write_report
from cusa.eval.results import FILES, FORMATS, distinct_names, keep_results, read_queries, read_results, write_json
from cusa.eval.sources import Advance, FileSource
from cusa.eval.sts_sets import StsTask
from cusa.eval.subjects import (
    Machine,
    Subject,
    embeddings_of,
    retrieval_data,
    teachers_of,
)
from cusa.eval.suites import (
    check_counts,
    measure_images,
    measure_retrieval,
    measure_sts,
)
from cusa.train.run_dir import begun, read_metrics
from cusa.train.student import Head


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

    Args:
        plan: What, and how.
        advance: Told how far it is.

    Raises:
        CusaError: If a model or data cannot be had, or models were measured on different data.
    """
    machine = Machine(plan.device, plan.checkpoint, plan.batch_size, plan.workers, plan.readers, advance)
    subjects = [Subject(spec, machine) for spec in plan.models]
    if any(plan.files):
        subjects.append(Subject("", machine, lambda: FileSource(*plan.files, name=plan.name)))
    _check_apart(subjects)
    out = plan.out or (subjects[0].results if len(subjects) == 1 else _beside(subjects[0]))
    _check_writable(out)
    found = Measured()
    image_sets = asked_image_sets(plan, found.notes) if "images" in plan.suites else []
    tasks = asked_sts_tasks(plan, found.notes) if "sts" in plan.suites else []
    names = distinct_names([s.source.name for s in subjects], [s.run_dir or s.results for s in subjects])
    for subject, name in zip(subjects, names, strict=True):
        report = RunReport(name)
        for suite in plan.suites:
            if suite == "retrieval":
                report = _retrieval(report, subject, subjects, plan, machine, found)
            elif suite == "images" and image_sets:
                report = _images(report, subject, image_sets, plan, found)
            elif suite == "sts":
                report = _sts(report, subject, tasks, subjects, plan, found)
        found.reports.append(report)
        _check_same_split(found.reports)
    if not found.written:
        raise CusaError(f"nothing to measure: {'; '.join(found.notes)}")
    if unreadable := _write_report(out, _with_earlier(found.reports, subjects), found.written, plan.latex):
        found.notes.append(f"{unreadable} images that the report shows could not be read; pass --image-root")
    return found


def _retrieval(
    report: RunReport, subject: Subject, subjects: Sequence[Subject], plan: Plan, machine: Machine, found: Measured
) -> RunReport:
    if plan.skip_absent and (missing := {"image", "text"} - subject.source.modalities):
        found.notes.append(f"no retrieval for {report.name}: it embeds no {' and no '.join(sorted(missing))}s")
        return report
    try:
        data, store = retrieval_data(plan.data, [subject, *subjects])
    except CusaError as error:
        if not plan.skip_absent:
            raise
        found.notes.append(f"no retrieval for {report.name}: {error}")
        return report
    if (unlike := check_counts(data, plan.measure.allow_partial)) and unlike not in found.notes:
        found.notes.append(unlike)
    own = plan.data.embeddings is None and not plan.data.dataset
    embeddings = embeddings_of(subject, data, store, own, machine)
    uni_head: Head = subject.source.uni_head
    measured, ranked = measure_retrieval(embeddings, data, uni_head, plan.measure)
    origin = subject.origin()
    terms = list(origin.config.loss.terms) if origin else []
    metrics = {
        **subject.about(*FORMATS["retrieval"]),
        "run": str(subject.run_dir) if subject.run_dir else None,
        "checkpoint": plan.checkpoint if origin else None,
        "epoch": origin.epoch if origin else None,
        "step": origin.step if origin else None,
        "loss_terms": terms,
        **measured,
    }
    if origin and (row := paper_retrieval(origin.config.student.name, terms, metrics)):
        metrics["paper"] = row
    name = f"{data.dataset.replace('/', '_')} {data.split.name}"
    fingerprint = f"{data.split.fingerprint} {metrics['n_images']} {metrics['n_captions']}"
    _keep(
        subject, "retrieval", metrics, {name: fingerprint}, {f"{name}/{k}": v for k, v in ranked.items()}, plan, found
    )
    head_of: dict[Task, Head] = {"i2t": "cross", "t2i": "cross", "t2t": uni_head, "i2i": uni_head}
    teachers = teachers_of(subject, store, data.split.name)
    return replace(
        report,
        metrics=metrics,
        history=tuple(read_metrics(subject.run_dir)) if subject.run_dir else (),
        gallery=make_gallery(
            embeddings, data.split, data.image_root, head_of, plan.gallery, plan.measure.scoring.bootstrap.seed
        ),
        failures=worst_failures(embeddings, data.split, data.image_root, head_of, plan.gallery),
        false_negatives=likely_false_negatives(embeddings, data.split, teachers, data.image_root, 2 * plan.gallery),
    )


def _images(report: RunReport, subject: Subject, sets: Sequence[ImageSet], plan: Plan, found: Measured) -> RunReport:
    if plan.skip_absent and "image" not in subject.source.modalities:
        found.notes.append(f"no image retrieval for {report.name}: it embeds no images")
        return report
    measured, queries = measure_images(subject.source, sets, plan.measure)
    content = subject.about(*FORMATS["images"]) | measured
    content |= _paper(subject, "image_retrieval_r1")
    content = _keep(subject, "images", content, {s.name: s.fingerprint for s in sets}, queries, plan, found)
    return replace(report, images=content)


def _sts(
    report: RunReport,
    subject: Subject,
    tasks: Sequence[StsTask],
    subjects: Sequence[Subject],
    plan: Plan,
    found: Measured,
) -> RunReport:
    if plan.skip_absent and "text" not in subject.source.modalities:
        found.notes.append(f"no sentence similarity for {report.name}: it embeds no texts")
        return report
    cxc = judged_by_cxc(report.name, subject, subjects, plan, found.notes)
    if not tasks and not cxc:
        return report
    measured, judged = measure_sts(subject.source, tasks, cxc, plan.measure)
    content = subject.about(*FORMATS["sts"]) | measured | _paper(subject, "sts_spearman")
    content = _keep(subject, "sts", content, {t.name: t.fingerprint for t in tasks}, judged, plan, found)
    return replace(report, sts=content)


def _paper(subject: Subject, table: str) -> dict[str, Any]:
    origin = subject.origin()
    row = paper_row(origin.config.student.name, origin.config.loss.terms, table) if origin else None
    return {"paper": row.plain()} if row else {}


def _keep(
    subject: Subject,
    suite: Suite,
    content: dict[str, Any],
    sets: Mapping[str, str],
    queries: Mapping[str, Rankings] | Mapping[str, Judged],
    plan: Plan,
    found: Measured,
) -> dict[str, Any]:
    """Write a suite's results beside the model; the figures as written."""
    source = subject.source
    kept = Queries(source.name, source.uni_head, plan.measure.scoring.ties, sets, dict(queries))
    path = subject.results / FILES[suite]
    before = read_results(subject.results, suite) or {}
    written = keep_results(subject.results, suite, content, kept)
    gone = [name for key in ("sets", "tasks") for name in before.get(key, {}) if name not in written.get(key, {})]
    if gone:
        found.notes.append(f"{path}: {', '.join(gone)}, measured before by other weights or rules, made way")
    found.written.setdefault("metrics", []).append(path)
    return written


def _with_earlier(reports: Sequence[RunReport], subjects: Sequence[Subject]) -> list[RunReport]:
    """With what was measured before of the same weights, where that can stand side by side."""
    names: Mapping[Suite, str] = {"retrieval": "metrics", "images": "images", "sts": "sts"}
    full = []
    for report, subject in zip(reports, subjects, strict=True):
        earlier: dict[str, Any] = {}
        for suite, name in names.items():
            content = read_results(subject.results, suite) if getattr(report, name) is None else None
            weights = content.get("model", {}).get("weights_sha256") if content else None
            if weights == subject.source.description["weights_sha256"]:
                earlier[name] = content
        full.append(replace(report, **earlier))
    splits = {str(r.metrics["split_fingerprint"]) for r in full if r.metrics}
    return full if len(splits) <= 1 else [replace(f, metrics=r.metrics) for f, r in zip(full, reports, strict=True)]


def _check_apart(subjects: Sequence[Subject]) -> None:
    """Refuse models that would overwrite another's results."""
    taken: set[Path] = set()
    for subject in subjects:
        if (folder := subject.results.resolve()) in taken:
            raise CusaError(
                f"two models are named {subject.source.name!r}, and {subject.results} holds the results of one; pass "
                "each once, or rename a folder"
            )
        taken.add(folder)
        for suite in () if subject.run_dir else SUITES:
            before = (read_results(folder, suite) or {}).get("model", {})
            source, weights = (subject.source.description[k] for k in ("source", "weights_sha256"))
            if before and before.get("source") != source and before.get("weights_sha256") != weights:
                raise CusaError(
                    f"{subject.results} holds the results of another model of that name ({before.get('source')}); pass "
                    "--name with --image-embeddings or --text-embeddings, rename the model's folder, or remove those "
                    "results"
                )


def _check_writable(out: Path) -> None:
    """What cannot be written is said before anything is measured."""
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise CusaError(f"{place} is {'not writable' if place.is_dir() else 'no folder'}; pass another: --out FOLDER")


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


def _write_report(
    out: Path,
    reports: Sequence[RunReport],
    written: dict[str, list[Path]],
    latex: bool,
    comparison: dict[str, Any] | None = None,
) -> int:
    page, tables = ("report.html", "tables.tex") if comparison is None else ("comparison.html", "comparison.tex")
    unreadable = write_report(out / page, reports, comparison)
    written["report"] = [(out / page).resolve()]
    if latex:
        with atomic_file(out / tables) as temporary:
            temporary.write_text(latex_tables(reports))
        written["tables"] = [out / tables]
    return unreadable


def compare_measured(
    models: Sequence[Path], bootstrap: int, seed: int, out: Path | None, latex: bool
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Compare models that were measured before; writes comparison.json and comparison.html.

    Args:
        models: Run directories, or folders of results; the first is what the others are compared to.
        bootstrap: Resamplings.
        seed: Their seed.
        out: Folder of what is written; ``None``: ``eval`` beside the first.
        latex: Whether to write comparison.tex.

    Raises:
        CusaError: If one was not measured, or they were measured on different data.
    """
    if len(models) < 2:
        raise CusaError("compare takes at least two models; name another run or folder of results")
    folders = []
    for model in models:
        places = [p for p in (model / "eval", model) if any((p / FILES[s]).is_file() for s in SUITES)]
        if not places:
            raise CusaError(f"{model} holds no results of cusa-eval; run cusa-eval --run {model} first")
        folders.append(places[0])
    first = folders[0].resolve()
    in_run = first.name == "eval" and begun(first.parent)
    out = out or (first.parent.parent if in_run or first.parent.name == "eval" else first.parent) / "eval"
    _check_writable(out)
    results = [{s: c for s in SUITES if (c := read_results(folder, s))} for folder in folders]
    queries = [
        {s: q for s in found if (q := read_queries(folder, s))} for folder, found in zip(folders, results, strict=True)
    ]
    places = [folder.parent if folder.name == "eval" and begun(folder.parent) else folder for folder in folders]
    names = distinct_names([next(iter(found.values()))["name"] for found in results], places)
    named = [{s: replace(q, name=name) for s, q in of.items()} for of, name in zip(queries, names, strict=True)]
    content = compare(named, Bootstrap(bootstrap, seed))
    reports = [
        RunReport(name, found.get("retrieval"), found.get("images"), found.get("sts"))
        for found, name in zip(results, names, strict=True)
    ]
    written: dict[str, list[Path]] = {}
    write_json(out / "comparison.json", content)
    written["comparison"] = [out / "comparison.json"]
    _write_report(out, reports, written, latex, content)
    return content, written

"""The evaluation as one HTML page that opens anywhere: tables, curves, queries with their hits, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cusa.eval.evaluators.retrieval.teacher_scores import teachers_know_less
from cusa.eval.report.charts import best_epoch, learning_charts, look, recall_charts, temperatures
from cusa.eval.report.gallery import GalleryQuery, Item
from cusa.eval.report.page import write_page
from cusa.eval.report.sections import make_sections
from cusa.eval.report.tables import TASKS, RunReport

__all__ = ["RunReport", "write_report"]


def write_report(
    path: Path, runs: Sequence[RunReport], comparison: Mapping[str, Any] | None = None
) -> int:
    """Write the page; it holds its pictures and asks for nothing else.

    Args:
        path: The HTML file; replaced as a whole.
        runs: Models, in the order shown; those with retrieval metrics were evaluated on the same split.
        comparison: Contents of comparison.json (docs/METRICS.md): paired differences between models.

    Returns:
        How many of the images that it shows could not be read.

    Raises:
        ValueError: If there is no model, or the models' galleries do not show the same queries.
    """
    if not runs:
        raise ValueError("a report needs at least one run; got none")
    gallery = side_by_side(runs)
    histories = [run.history for run in runs]
    return write_page(
        path,
        "report.html.jinja",
        [item.image_path for run in runs for item in _items(run) if item.image_path],
        runs=runs,
        about=next((run.metrics for run in runs if run.metrics), None),
        headlines=[headlines(run) for run in runs],
        explained=[teachers_know_less(run.metrics) if run.metrics else "" for run in runs],
        looks=[look(i) for i in range(len(runs))],
        best=[best_epoch(run.history) for run in runs],
        tasks=TASKS,
        sections=make_sections(runs),
        recalls=recall_charts([run.metrics for run in runs], TASKS),
        charts=learning_charts(histories),
        constants={name: v.pop() for name, v in temperatures(histories).items() if len(v) == 1},
        gallery=gallery,
        knows_truth=any(
            hit.is_true is not None
            for run in runs
            for shown in _answered(run)
            for hit in shown.hits
        ),
        comparison=comparison,
    )


def headlines(run: RunReport) -> list[tuple[str, str]]:
    """The figure that stands for each suite a model was measured by, and what it is; by the head to use there."""
    found = [("RSUM of 600, cross head", _retrieval_rsum(run))]
    for content, key, figure, what, several in (
        (run.images, "sets", "r1", "R@1 of images", "mean of the paper's four sets"),
        (run.sts, "tasks", "headline", "100 × Spearman", "mean of the paper's seven STS tasks"),
    ):
        if content and content[key]:
            head, mean = content["head"], content["average"].get(content["head"])
            first, of_first = next(iter(content[key].items()))
            of, value = (
                (several, mean) if mean is not None else (first, of_first["heads"][head][figure])
            )
            found.append((f"{what}, {of}, {head} head", value))
    return [(what, f"{value:.1f}") for what, value in found if value is not None]


def side_by_side(runs: Sequence[RunReport]) -> dict[str, list[list[tuple[int, GalleryQuery]]]]:
    """Per task its queries, each with the position and the answer of every model that has a gallery.

    Raises:
        ValueError: If the models do not show the same queries in the same order.
    """
    shown = [(i, run.gallery) for i, run in enumerate(runs) if run.gallery]
    asked = [[(a.task, a.query.kind, a.query.text) for a in gallery] for _, gallery in shown]
    if any(queries != asked[0] for queries in asked):
        names = ", ".join(runs[i].name for i, _ in shown)
        raise ValueError(
            f"the galleries of {names} do not show the same queries; make them with one seed"
        )
    answers = [
        [(i, gallery[q]) for i, gallery in shown] for q in range(len(shown[0][1]) if shown else 0)
    ]
    by_task = {task: [a for a in answers if a[0][1].task == task] for task in TASKS}
    return {task: queries for task, queries in by_task.items() if queries}


def _retrieval_rsum(run: RunReport) -> float | None:
    return run.metrics["heads"]["cross"]["retrieval"]["rsum"] if run.metrics else None


def _answered(run: RunReport) -> tuple[GalleryQuery, ...]:
    return (*run.gallery, *run.failures)


def _items(run: RunReport) -> Iterator[Item]:
    """Every image and caption that the page shows of a model."""
    for answer in _answered(run):
        yield answer.query
        yield from (hit.item for hit in answer.hits)
        if answer.answer:
            yield answer.answer.item
    for pair in run.false_negatives:
        yield from (pair.own_image, pair.retrieved)

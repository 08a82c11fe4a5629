"""The evaluation as one HTML page that opens anywhere: tables, curves, queries with their hits, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cusa.eval.report.charts import best_epoch, learning_charts, look, recall_charts, temperatures
from cusa.eval.report.failures import FalseNegative
from cusa.eval.report.gallery import GalleryQuery, Item
from cusa.eval.report.page import write_page
from cusa.eval.report.tables import TASKS, Section


@dataclass(frozen=True)
class Examples:
    """What a report shows of a model beside tables.

    Attributes:
        history: Lines of its ``metrics.jsonl``; may be empty.
        gallery: Queries with their hits.
        failures: Its worst queries.
        false_negatives: Its hits that are wrong by the labels alone.
    """

    history: tuple[dict[str, Any], ...] = ()
    gallery: tuple[GalleryQuery, ...] = ()
    failures: tuple[GalleryQuery, ...] = ()
    false_negatives: tuple[FalseNegative, ...] = ()


@dataclass(frozen=True)
class ModelReport:
    """What the report shows of one model.

    Attributes:
        name: The model's name.
        results: Content of its file of results by suite (docs/METRICS.md); figures in percent.
        history: Lines of its ``metrics.jsonl``; may be empty.
        gallery: Queries with their hits; the same queries in the same order for every model, or none.
        failures: The model's worst queries.
        false_negatives: Its hits that are wrong by the labels alone.
    """

    name: str
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    gallery: tuple[GalleryQuery, ...] = ()
    failures: tuple[GalleryQuery, ...] = ()
    false_negatives: tuple[FalseNegative, ...] = ()

    def with_results(
        self, suite: str, content: Mapping[str, Any], examples: Examples
    ) -> ModelReport:
        """Add the results of a suite, with the examples that it chose."""
        return replace(
            self,
            results={**self.results, suite: content},
            history=examples.history or self.history,
            gallery=examples.gallery or self.gallery,
            failures=examples.failures or self.failures,
            false_negatives=examples.false_negatives or self.false_negatives,
        )

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """Content of its ``metrics.json``, if retrieval was measured."""
        return self.results.get("retrieval")


def write_report(
    path: Path,
    models: Sequence[ModelReport],
    sections: Sequence[Section],
    comparison: Mapping[str, Any] | None = None,
) -> int:
    """Write the page; it holds its pictures and asks for nothing else.

    Args:
        path: The HTML file; replaced as a whole.
        models: Models, in the order shown.
        sections: Their tables.
        comparison: Contents of comparison.json (docs/METRICS.md): paired differences between models.

    Returns:
        How many of the images that it shows could not be read.

    Raises:
        ValueError: If there is no model, or the models' galleries do not show the same queries.
    """
    if not models:
        raise ValueError("a report needs at least one model; got none")
    histories = [model.history for model in models]
    constants = {}
    for name, values in temperatures(histories).items():
        if len(values) == 1:
            constants[name] = values.pop()
    items = [item for model in models for item in _items(model)]
    return write_page(
        path,
        "report.html.jinja",
        [item.image_path for item in items if item.image_path],
        runs=models,
        about=next((model.metrics for model in models if model.metrics), None),
        headlines=headlines(models, sections),
        explained=_remarks(models, sections),
        looks=[look(position) for position in range(len(models))],
        best=[best_epoch(history) for history in histories],
        tasks=TASKS,
        sections=sections,
        recalls=recall_charts([model.metrics for model in models], TASKS),
        charts=learning_charts(histories),
        constants=constants,
        gallery=side_by_side(models),
        knows_truth=_knows_truth(models),
        comparison=comparison,
    )


def headlines(
    models: Sequence[ModelReport], sections: Sequence[Section]
) -> list[list[tuple[str, str]]]:
    """Return the figures that stand for each model, one a suite: what it is, and the figure."""
    of_models: list[list[tuple[str, str]]] = [[] for _ in models]
    for section in sections:
        for position, headline in (section.headlines or {}).items():
            of_models[position].append((headline.label, f"{headline.figure:.1f}"))
    return of_models


def _remarks(models: Sequence[ModelReport], sections: Sequence[Section]) -> list[str]:
    """What explains each model's figures; empty where nothing does."""
    remarks = [""] * len(models)
    for section in sections:
        for position, remark in (section.remarks or {}).items():
            remarks[position] = f"{remarks[position]} {remark}".strip()
    return remarks


def side_by_side(
    models: Sequence[ModelReport],
) -> dict[str, list[list[tuple[int, GalleryQuery]]]]:
    """Return per task its queries, each with the position and the answer of every model that has a gallery.

    Raises:
        ValueError: If the models do not show the same queries in the same order.
    """
    shown = [(position, model.gallery) for position, model in enumerate(models) if model.gallery]
    if not shown:
        return {}
    first_asked = _queries(shown[0][1])
    if any(_queries(gallery) != first_asked for _, gallery in shown):
        names = ", ".join(models[position].name for position, _ in shown)
        raise ValueError(
            f"the galleries of {names} do not show the same queries; make them with one seed"
        )
    by_task: dict[str, list[list[tuple[int, GalleryQuery]]]] = {task: [] for task in TASKS}
    for number, query in enumerate(shown[0][1]):
        answers = [(position, gallery[number]) for position, gallery in shown]
        by_task[query.task].append(answers)
    return {task: queries for task, queries in by_task.items() if queries}


def _queries(gallery: Sequence[GalleryQuery]) -> list[tuple[str, str, str]]:
    return [(answer.task, answer.query.kind, answer.query.text) for answer in gallery]


def _answers(model: ModelReport) -> tuple[GalleryQuery, ...]:
    return (*model.gallery, *model.failures)


def _knows_truth(models: Sequence[ModelReport]) -> bool:
    """Whether a hit is shown whose truth the data set knows, whatever its labels say."""
    hits = (hit for model in models for answer in _answers(model) for hit in answer.hits)
    return any(hit.is_true is not None for hit in hits)


def _items(model: ModelReport) -> Iterator[Item]:
    """Every image and caption that the page shows of a model."""
    for answer in _answers(model):
        yield answer.query
        for hit in answer.hits:
            yield hit.item
        if answer.answer:
            yield answer.answer.item
    for pair in model.false_negatives:
        yield pair.own
        yield pair.retrieved

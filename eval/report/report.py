"""The report of an evaluation, an HTML page: tables, curves, queries with their hits, failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from cusa.data.environment import versions
from cusa.eval.report import charts
from cusa.eval.report.disagreements import Disagreement
from cusa.eval.report.failures import FalseNegative
from cusa.eval.report.gallery import GalleryQuery, Item
from cusa.eval.report.line_chart import curve_style
from cusa.eval.report.model_facts import model_facts, settings_facts, versions_in_words
from cusa.eval.report.page import write_page
from cusa.eval.report.paired_differences import SuiteDifferences
from cusa.eval.report.tables import TASKS, Headline, Section

# Positions of models, and their answers to one query.
ModelAnswers = list[tuple[int, GalleryQuery]]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a report shows of a model beside tables.

    Attributes:
        history: Lines of the run's ``metrics.jsonl``; empty for a model that is no run.
        gallery: Queries with their hits: the same queries in the same order for every model, or
            none.
        failures: The model's worst queries.
        false_negatives: Hits that the labels likely call wrong by mistake.
        disagreements: For both directions, the queries that either this model or the first one
            answers right; none for the first model.
    """

    history: tuple[dict[str, Any], ...] = ()
    gallery: tuple[GalleryQuery, ...] = ()
    failures: tuple[GalleryQuery, ...] = ()
    false_negatives: tuple[FalseNegative, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()


@dataclass(frozen=True)
class ModelReport(Examples):
    """What the report shows of one model.

    Attributes:
        name: The model's name.
        results: Content of its results file by suite (docs/METRICS.md); figures in percent.
        differences: Its differences from the first model by suite.
    """

    name: str
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    differences: Mapping[str, SuiteDifferences] = field(default_factory=dict)

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the model, the same in the results of all suites."""
        description: dict[str, Any] = {}
        # Older results describe a run beside its figures, if at all.
        for key in ("loss_terms", "epoch", "checkpoint"):
            value = (self.metrics or {}).get(key)
            if value is not None:
                description[key] = value
        for content in self.results.values():
            description |= content.get("model") or {}
        return description

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """Content of its ``metrics.json``; ``None`` if retrieval was not measured."""
        return self.results.get("retrieval")


def write_report(
    path: Path,
    models: Sequence[ModelReport],
    sections: Sequence[Section],
    comparison: Mapping[str, Any] | None = None,
) -> int:
    """Write the report as a self-contained page.

    Args:
        path: The HTML file, which is written atomically.
        models: The models, in the order of the report.
        sections: Their tables.
        comparison: Content of comparison.json (docs/METRICS.md), if the page is a comparison.

    Returns:
        The number of images on the page that could not be read.

    Raises:
        ValueError: If there is no model, or the models' galleries do not show the same queries.
    """
    if not models:
        raise ValueError("a report needs at least one model; got none")
    metrics = [model.metrics for model in models]
    histories = [model.history for model in models]
    descriptions = [model.description for model in models]
    return write_page(
        path,
        "report.html.jinja",
        _image_paths(models),
        runs=models,
        about=next(filter(None, metrics), None),
        first_measured=next(filter(metrics.__getitem__, range(len(metrics))), 0),
        facts=model_facts(descriptions),
        settings=settings_facts(descriptions),
        written=_written(),
        headlines=headlines(models, sections),
        explained=_remarks(models, sections),
        looks=list(map(curve_style, range(len(models)))),
        best=list(map(charts.best_validation, histories)),
        tasks=TASKS,
        sections=sections,
        recalls=charts.recall_charts(metrics, TASKS),
        charts=charts.learning_charts(histories),
        constants=_constant_temperatures(histories),
        gallery=side_by_side(models),
        knows_truth=_knows_truth(models),
        comparison=comparison,
    )


def headlines(
    models: Sequence[ModelReport],
    sections: Sequence[Section],
) -> list[list[Headline]]:
    """Return the headline figures of each model, one per suite."""
    by_model: list[list[Headline]] = [[] for _ in models]
    for section in sections:
        for position, headline in (section.headlines or {}).items():
            by_model[position].append(headline)
    return by_model


def _written() -> str:
    """Tell when and with what the report is written."""
    today = datetime.now(UTC)
    return f"{today.day} {today:%B %Y}, {versions_in_words(versions())}"


def _remarks(
    models: Sequence[ModelReport],
    sections: Sequence[Section],
) -> list[str]:
    """Return the remarks on each model's figures; empty for a model without any."""
    remarks = [""] * len(models)
    for section in sections:
        for position, remark in (section.remarks or {}).items():
            remarks[position] = f"{remarks[position]} {remark}".strip()
    return remarks


def _constant_temperatures(histories: Sequence[charts.History]) -> dict[str, float]:
    # Changing temperatures have a chart instead.
    constants = {}
    for temperature, values in charts.temperatures(histories).items():
        if len(values) == 1:
            constants[temperature] = values.pop()
    return constants


def side_by_side(models: Sequence[ModelReport]) -> dict[str, list[ModelAnswers]]:
    """Put the models' answers to each query side by side.

    Returns:
        The queries of each task, each as the positions of all models with a gallery and their
        answers.

    Raises:
        ValueError: If the models do not show the same queries in the same order.
    """
    # Keyed by the model's position, as some models, such as text models, have no gallery.
    galleries = {}
    for position, model in enumerate(models):
        if model.gallery:
            galleries[position] = model.gallery
    if not galleries:
        return {}

    first_gallery = next(iter(galleries.values()))
    for gallery in galleries.values():
        if _queries(gallery) != _queries(first_gallery):
            names = ", ".join(models[position].name for position in galleries)
            raise ValueError(
                f"the galleries of {names} do not show the same queries; make them with one seed"
            )

    by_task: dict[str, list[ModelAnswers]] = {task: [] for task in TASKS}
    for number, query in enumerate(first_gallery):
        answers = []
        for position, gallery in galleries.items():
            answers.append((position, gallery[number]))
        by_task[query.task].append(answers)
    return {task: queries for task, queries in by_task.items() if queries}


def _queries(gallery: Sequence[GalleryQuery]) -> list[tuple[str, Item]]:
    return [(answer.task, answer.query) for answer in gallery]


def _answers(models: Sequence[ModelReport]) -> Iterator[GalleryQuery]:
    for model in models:
        yield from model.gallery
        yield from model.failures
        for disagreement in model.disagreements:
            pairs = disagreement.first_right_shown + disagreement.second_right_shown
            yield from chain.from_iterable(pairs)


def _knows_truth(models: Sequence[ModelReport]) -> bool:
    """Tell whether the page shows a hit whose truth is known beyond the labels."""
    for answer in _answers(models):
        for hit in answer.hits:
            if hit.is_true is not None:
                return True
    return False


def _image_paths(models: Sequence[ModelReport]) -> list[Path]:
    """List the image files that the page shows."""
    items: list[Item] = []
    for answer in _answers(models):
        items.append(answer.query)
        for hit in (*answer.hits, answer.answer):
            if hit:
                items.append(hit.item)
    for model in models:
        for negative in model.false_negatives:
            items += [negative.own_image, negative.retrieved]
    return [item.image_path for item in items if item.image_path]

"""What retrieval measures of one model, whether it gives embeddings or scores, and examples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cusa.data.embeddings import Head, SplitEmbeddings, SplitItems
from cusa.eval.evaluators.protocol import named_in_errors
from cusa.eval.evaluators.request import MeasureOptions
from cusa.eval.evaluators.retrieval.coco import CocoTruths, coco_test
from cusa.eval.evaluators.retrieval.measure import measure_scores, measure_split
from cusa.eval.evaluators.retrieval.results import TeacherFigures
from cusa.eval.evaluators.retrieval.teacher_scores import teacher_scores
from cusa.eval.evaluators.split_embeddings import (
    split_embeddings,
    split_teachers,
)
from cusa.eval.evaluators.split_scores import split_scores
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.metric_options import PerQuery
from cusa.eval.metrics.per_query import Rankings, Ties
from cusa.eval.metrics.relevance import Task
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.models.scores import ScoresProvider
from cusa.eval.report.disagreements import AnsweredSplit, CrossModalTask, disagreements
from cusa.eval.report.failures import likely_false_negatives, worst_failures
from cusa.eval.report.false_negative_pairs import Teachers
from cusa.eval.report.gallery import EmbeddedItems, make_gallery
from cusa.eval.report.report import Examples
from cusa.train.saving.run_dir import read_history


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        items: The images and captions that it embeds or scores.
        figures: As metrics.json holds them.
        per_query: The rankings behind them.
        teachers: Figures of the teachers.
        examples: What the report shows beside tables.
        note: What is wrong with the run's log, if anything.
        note_on_figures: What the figures take for granted, if anything.
    """

    items: SplitItems
    figures: dict[str, Any]
    per_query: PerQuery
    teachers: dict[str, TeacherFigures] = field(default_factory=dict)
    examples: Examples | None = None
    note: str = ""
    note_on_figures: str = ""


def measure(
    model: EvaluatedModel,
    split: EvaluatedSplit,
    coco_truths: CocoTruths,
    first_answers: list[AnsweredSplit] | None,
    options: MeasureOptions,
) -> Measured:
    """Measure a model on its split.

    Args:
        model: The model, which gives embeddings or scores.
        split: The split.
        coco_truths: Ground truths of COCO's test.
        first_answers: As ``RetrievalData`` has them.
        options: How to measure.

    Raises:
        CusaError: If an input cannot be read, or scores do not fit the split.
    """
    if model.scores is not None:
        return _measure_scores(model.scores, split, coco_truths, options)
    embeddings = split_embeddings(model, split)
    test = coco_test(embeddings, split.view, split.dataset, coco_truths)
    uni_head, scoring = model.provider.uni_head, options.scoring
    figures, per_query = measure_split(embeddings, split.view, uni_head, test, scoring)
    teachers = split_teachers(model, split)
    examples, history_note = _examples(model, split, embeddings, teachers, options)
    if first_answers is not None:
        answered = _answered(split, embeddings, per_query, scoring.ties)
        examples = _with_disagreements(examples, first_answers, answered, options)
    return Measured(
        embeddings,
        figures,
        per_query,
        teacher_scores(teachers, embeddings, split.view, scoring),
        examples,
        history_note,
    )


def _measure_scores(
    provider: ScoresProvider,
    split: EvaluatedSplit,
    coco_truths: CocoTruths,
    options: MeasureOptions,
) -> Measured:
    """Measure a matrix of scores across modalities; it tells nothing within one."""
    scores = split_scores(provider, split)
    test = coco_test(scores, split.view, split.dataset, coco_truths)
    with named_in_errors(str(provider.path), provider.path):
        figures, per_query = measure_scores(
            scores.similarities, scores, split.view, test, options.scoring
        )
    return Measured(scores, figures, per_query, note_on_figures=scores.note)


def _with_disagreements(
    examples: Examples,
    first_answers: list[AnsweredSplit],
    second: AnsweredSplit,
    options: MeasureOptions,
) -> Examples:
    """Add the queries that either this model or the first one answers right.

    Args:
        examples: The model's other examples.
        first_answers: The first model's answers; if it is empty, this model is the first, and its
            answers are put there.
        second: This model's answers.
        options: How many queries to show.
    """
    if not first_answers:
        first_answers.append(second)
        return examples
    # There are two kinds of them in each direction.
    n_shown = (options.n_shown + 1) // 2
    return replace(examples, disagreements=disagreements(first_answers[0], second, n_shown))


def _answered(
    split: EvaluatedSplit,
    embeddings: SplitEmbeddings,
    per_query: PerQuery,
    ties: Ties,
) -> AnsweredSplit:
    """Return a model's cross-modal answers, without what belongs to its other head."""
    across = replace(
        embeddings,
        image={"cross": embeddings.image["cross"]},
        text={"cross": embeddings.text["cross"]},
    )
    rankings: dict[CrossModalTask, Rankings] = {}
    for task in ("i2t", "t2i"):
        rankings[task] = per_query[f"cross/retrieval/{task}"]
    return AnsweredSplit(EmbeddedItems(across, split.view, split.image_root), rankings, ties)


def _examples(
    model: EvaluatedModel,
    split: EvaluatedSplit,
    embeddings: SplitEmbeddings,
    teachers: Teachers,
    options: MeasureOptions,
) -> tuple[Examples, str]:
    """Choose the report's examples, and describe what is wrong with the run's log, if anything."""
    uni_head, n_shown = model.provider.uni_head, options.n_shown
    head_by_task: dict[Task, Head] = {
        "i2t": "cross",
        "t2i": "cross",
        "t2t": uni_head,
        "i2i": uni_head,
    }
    seed = options.scoring.bootstrap.seed
    view, image_root = split.view, split.image_root
    examples = Examples(
        gallery=make_gallery(embeddings, view, image_root, head_by_task, n_shown, seed),
        failures=worst_failures(embeddings, view, image_root, head_by_task, n_shown),
        false_negatives=likely_false_negatives(embeddings, view, teachers, image_root, 2 * n_shown),
    )
    if model.run_dir is None:
        return examples, ""
    history = read_history(model.run_dir)
    return replace(examples, history=tuple(history.lines)), history.note

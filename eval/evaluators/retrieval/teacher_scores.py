"""Uni-modal retrieval by the teachers themselves.

USA makes the uni-modal heads resemble the teachers, so these figures bound what the heads can gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.records import SplitView
from cusa.data.store.embeddings import Embeddings
from cusa.data.unit_rows import unit_rows
from cusa.eval.evaluators.retrieval.results import TeacherFigures
from cusa.eval.metrics.metric_options import Scoring, direction_figures
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import rank_bounds
from cusa.eval.metrics.relevance import Task, relevance_of
from cusa.eval.report.false_negative_pairs import Teachers

_TASKS: dict[Task, str] = {"t2t": "text to text", "i2i": "image to image"}
_METRICS = ("r1", "r5", "r10", "queries", "candidates")


def teacher_scores(
    teachers: Teachers,
    embeddings: SplitEmbeddings,
    split: SplitView,
    scoring: Scoring,
) -> dict[str, TeacherFigures]:
    """Measure the teachers' embeddings by the rules of a model's uni-modal figures.

    Args:
        teachers: The teachers' rows of the split.
        embeddings: A model's embeddings of the split, whose items are queries and candidates.
        split: The split.
        scoring: Metric options, of which only the rule for ties is used.

    Returns:
        For ``"t2t"`` and, where image labels are known, ``"i2i"``: ``teacher``, its name; ``r1``,
        ``r5`` and ``r10`` in percent; ``queries`` and ``candidates``. A task is left out if its
        teacher is missing or skipped one of the items.
    """
    rows_of_task: dict[Task, tuple[Embeddings | None, np.ndarray]] = {}
    rows_of_task["t2t"] = teachers.text, embeddings.text_rows
    if split.truth is not None:
        rows_of_task["i2i"] = teachers.image, embeddings.image_rows
    scores: dict[str, TeacherFigures] = {}
    for task, (teacher, rows) in rows_of_task.items():
        if teacher is None or np.isin(rows, teacher.skipped).any():
            continue
        features = unit_rows(teacher.gather(rows))
        relevance = relevance_of(task, embeddings, split)
        ranks = rank_bounds(
            features, features, relevance.indptr, relevance.indices, relevance.exclude
        )
        rankings = Rankings(ranks, len(features) - 1).answerable()
        metrics = direction_figures(rankings, Scoring(scoring.ties))
        figures = {name: metrics[name] for name in _METRICS}
        scores[task] = cast("TeacherFigures", {"teacher": teacher.teacher, **figures})
    return scores


def teachers_know_less(metrics: Mapping[str, Any]) -> str:
    """Explain why USA made the uni-modal heads worse than the cross-modal ones, if it did.

    Args:
        metrics: Content of a model's metrics.json.

    Returns:
        One line; empty if USA was not used, the uni-modal heads are at least as good, or the
        teachers are at least as good as the cross-modal heads, and so do not explain it.
    """
    heads, scores = metrics["heads"], metrics.get("teachers", {})
    if "usa" not in metrics.get("loss_terms", ()) or "uni" not in heads:
        return ""
    comparisons = []
    for task, title in _TASKS.items():
        if task not in scores:
            continue
        teacher_name, teacher_recall = scores[task]["teacher"], scores[task]["r1"]
        uni_recall = heads["uni"]["unimodal"][task]["r1"]
        cross_recall = heads["cross"]["unimodal"][task]["r1"]
        if None in (teacher_recall, uni_recall, cross_recall):
            continue
        if max(teacher_recall, uni_recall) < cross_recall:
            comparisons.append(
                f"{title}, R@1 is {teacher_recall:.1f} for {teacher_name} itself, "
                f"{uni_recall:.1f} for the uni-modal head trained on it, and {cross_recall:.1f} "
                "for the cross-modal head"
            )
    if not comparisons:
        return ""
    return (
        f"the teachers know less about this data than the pairs teach: {'; '.join(comparisons)}. "
        "USA makes the uni-modal heads resemble the teachers, so they gain only where the teachers "
        "know more, as on COCO's photographs (docs/benchmarks.md)"
    )

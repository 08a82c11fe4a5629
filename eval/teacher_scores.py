"""What the teachers themselves retrieve within their modality, and whether the uni-modal heads can gain from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cusa.data.records import SplitView
from cusa.data.store import Embeddings
from cusa.data.unit_rows import unit_rows
from cusa.eval.failures import Teachers
from cusa.eval.rankings import Rankings
from cusa.eval.relevance import Task, relevance_of
from cusa.eval.scoring import Scoring, one_way
from cusa.train.encode import SplitEmbeddings
from cusa.train.ranks import rank_bounds

_TASKS: dict[Task, str] = {"t2t": "text to text", "i2i": "image to image"}
_FIGURES = ("r1", "r5", "r10", "queries", "candidates")


def teacher_scores(
    teachers: Teachers, embeddings: SplitEmbeddings, split: SplitView, scoring: Scoring
) -> dict[str, dict[str, Any]]:
    """R@1/5/10 of the teachers' own rows, by the rules of a model's uni-modal figures.

    Args:
        teachers: Their rows of the split.
        embeddings: A model's embeddings of the split: the same items are queries and candidates.
        split: The split.
        scoring: How ties count.

    Returns:
        For ``"t2t"`` and, where image labels are known, ``"i2i"``: ``teacher``, its name, and ``r1``, ``r5``, ``r10``
        in percent, ``queries``, ``candidates``. A task is left out if its teacher is not there, or has no row for an
        item.
    """
    rows: dict[Task, tuple[Embeddings | None, np.ndarray]] = {"t2t": (teachers.text, embeddings.text_rows)}
    if split.truth is not None:
        rows["i2i"] = (teachers.image, embeddings.image_rows)
    scores: dict[str, dict[str, Any]] = {}
    for task, (teacher, numbers) in rows.items():
        if teacher is None or np.isin(numbers, teacher.skipped).any():
            continue
        features = unit_rows(teacher.gather(numbers))
        relevance = relevance_of(task, embeddings, split)
        ranks = rank_bounds(features, features, relevance.indptr, relevance.indices, relevance.exclude)
        figures = one_way(Rankings(ranks, len(features) - 1).answerable(), Scoring(scoring.ties))
        scores[task] = {"teacher": teacher.teacher, **{name: figures[name] for name in _FIGURES}}
    return scores


def teachers_know_less(metrics: Mapping[str, Any]) -> str:
    """Why uni-modal heads that USA trained are worse here than the cross-modal ones, where the teachers explain it.

    Args:
        metrics: A model's metrics.json.

    Returns:
        One line; empty if USA was not used, the heads are no worse, or the teachers are better than they.
    """
    heads, scores = metrics["heads"], metrics.get("teachers", {})
    if "usa" not in metrics.get("loss_terms", ()) or "uni" not in heads:
        return ""
    parts = []
    for task, title in _TASKS.items():
        if task not in scores:
            continue
        uni, cross = (heads[head]["unimodal"][task]["r1"] for head in ("uni", "cross"))
        teacher = scores[task]
        if None not in (uni, cross, teacher["r1"]) and uni < cross and teacher["r1"] < cross:
            parts.append(
                f"{title}, R@1 is {teacher['r1']:.1f} for {teacher['teacher']} itself, {uni:.1f} for the uni-modal "
                f"heads that learned from it, {cross:.1f} for the cross-modal heads"
            )
    if not parts:
        return ""
    return (
        f"here the teachers know less than the pairs teach: {'; '.join(parts)}. USA makes the uni-modal heads like "
        "their teachers, so they gain only where the teachers know more, as on COCO's photographs (docs/benchmarks.md)"
    )

"""Queries that one of two models answers right and the second wrong, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cusa.eval.metrics.per_query import Rankings, Ties
from cusa.eval.metrics.recalls import recall_name
from cusa.eval.report.gallery import EmbeddedItems, GalleryQuery, answer_queries

CrossModalTask = Literal["i2t", "t2i"]
# The first model's answer to a query, and the second model's.
AnswerPair = tuple[GalleryQuery, GalleryQuery]
_ALL_RIGHT = 100.0  # R@1 of a query whose first hit is right, in percent


@dataclass(frozen=True)
class AnsweredSplit:
    """A model's answers to the cross-modal queries of a split.

    Attributes:
        items: The items of the split with the embeddings of the cross head.
        rankings: The rankings of both directions.
        ties: How ties count.
    """

    items: EmbeddedItems
    rankings: dict[CrossModalTask, Rankings]
    ties: Ties

    def is_right(self, task: CrossModalTask) -> np.ndarray:
        """Tell which queries have a right first hit, as R@1 counts them: bool ``[queries]``."""
        return self.rankings[task].values(self.ties)[recall_name(1)] == _ALL_RIGHT

    def has_same_items(self, second: AnsweredSplit) -> bool:
        """Tell whether another model answers the same queries in the same order."""
        embeddings, second_embeddings = self.items.embeddings, second.items.embeddings
        return (
            self.items.split.fingerprint == second.items.split.fingerprint
            and np.array_equal(embeddings.image_rows, second_embeddings.image_rows)
            and np.array_equal(embeddings.text_rows, second_embeddings.text_rows)
        )


@dataclass(frozen=True)
class Disagreement:
    """The queries of a direction, counted by whether the first hits of two models are right.

    Attributes:
        task: The direction.
        both_right: Number of queries that both answer right.
        first_right: Number of queries that only the first model answers right.
        second_right: Number of queries that only the second model answers right.
        both_wrong: Number of queries that both answer wrong.
        first_right_shown: Some of those that only the first model answers right.
        second_right_shown: Some of those that only the second model answers right.
    """

    task: CrossModalTask
    both_right: int
    first_right: int
    second_right: int
    both_wrong: int
    first_right_shown: tuple[AnswerPair, ...]
    second_right_shown: tuple[AnswerPair, ...]

    @property
    def n_queries(self) -> int:
        """Number of all queries."""
        return self.both_right + self.first_right + self.second_right + self.both_wrong


def disagreements(
    first: AnsweredSplit,
    second: AnsweredSplit,
    n_shown: int,
) -> tuple[Disagreement, ...]:
    """Count and choose the queries that two models answer differently, in both directions.

    Those are chosen whose best right answer ranks lowest for the model that is wrong; equal ranks
    are in the order of the split.

    Args:
        first: The first model's answers.
        second: The second model's answers to the same queries.
        n_shown: Most queries of each direction that one model answers right and the second wrong.

    Returns:
        A disagreement for each direction; none if the models answer different queries.
    """
    if not first.has_same_items(second):
        return ()
    by_direction = []
    for task in first.rankings:
        first_is_right, second_is_right = first.is_right(task), second.is_right(task)
        only_first = first_is_right & ~second_is_right
        only_second = second_is_right & ~first_is_right
        first_lowest = _lowest(only_second, first.rankings[task], n_shown)
        second_lowest = _lowest(only_first, second.rankings[task], n_shown)
        disagreement = Disagreement(
            task,
            both_right=int(np.count_nonzero(first_is_right & second_is_right)),
            first_right=int(np.count_nonzero(only_first)),
            second_right=int(np.count_nonzero(only_second)),
            both_wrong=int(np.count_nonzero(~first_is_right & ~second_is_right)),
            first_right_shown=_answers(task, first, second, second_lowest),
            second_right_shown=_answers(task, first, second, first_lowest),
        )
        by_direction.append(disagreement)
    return tuple(by_direction)


def _lowest(
    is_candidate: np.ndarray,
    rankings: Rankings,
    n_shown: int,
) -> np.ndarray:
    """Choose the queries that a model ranks lowest: int64 ``[at most n_shown]``."""
    queries = np.flatnonzero(is_candidate)
    ranks = rankings.best.pessimistic[queries]
    return queries[np.argsort(-ranks, kind="stable")[:n_shown]]


def _answers(
    task: CrossModalTask,
    first: AnsweredSplit,
    second: AnsweredSplit,
    queries: np.ndarray,
) -> tuple[AnswerPair, ...]:
    if not len(queries):
        return ()
    answers = []
    for model in (first, second):
        relevance = model.items.relevance(task)
        answers.append(answer_queries(model.items, "cross", queries, relevance))
    return tuple(zip(*answers, strict=True))

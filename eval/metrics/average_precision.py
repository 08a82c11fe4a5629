"""Average precision over whole rankings, with ties counted for and against the query."""

from __future__ import annotations

import numpy as np

from cusa.eval.metrics.per_query import Bounds
from cusa.eval.metrics.similarity_blocks import over_blocks


def average_precisions(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
) -> Bounds:
    """Compute average precision: the mean of the precisions at a query's relevant candidates.

    Unlike mAP@R, which stops after the first R candidates, it looks at the whole ranking (Manning
    et al., Introduction to Information Retrieval, 2008, section 8.4).

    Args:
        queries: float ``[n, d]``; similarities are dot products.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are
            ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64, none twice for a query.

    Returns:
        float64 ``[n]`` in 0 to 1, twice: of equal similarities the relevant first, and last; 0 for
        a query without a relevant candidate.

    Raises:
        EmbeddingsError: If an embedding is not finite, or has no dot products that can be ranked.
    """
    optimistic = np.zeros(len(queries))
    pessimistic = np.zeros(len(queries))

    def precisions_of_block(start: int, scores: np.ndarray) -> None:
        sorted_scores = np.sort(scores, axis=1)
        for row in range(len(scores)):
            query = start + row
            relevant = indices[indptr[query] : indptr[query + 1]]
            if len(relevant):
                bounds = _average_precision(scores[row, relevant], sorted_scores[row])
                optimistic[query], pessimistic[query] = bounds

    over_blocks(precisions_of_block, queries, candidates)
    return Bounds(optimistic, pessimistic)


def _average_precision(
    relevant_scores: np.ndarray,
    ascending: np.ndarray,
) -> tuple[float, float]:
    """Compute one query's average precision from all scores, ties counted for and against it."""
    scores = np.sort(relevant_scores)[::-1]
    n_candidates = len(ascending)
    n_hits = np.arange(1, len(scores) + 1)

    # How many candidates are above each of the scores, and how many reach it.
    n_above = n_candidates - np.searchsorted(
        ascending,
        scores,
        "right",
    )
    n_reaching = n_candidates - np.searchsorted(
        ascending,
        scores,
        "left",
    )
    # The same of relevant candidates: those of one score keep their order among each other.
    negated = -scores
    n_relevant_above = np.searchsorted(negated, negated, "left")
    n_relevant_reaching = np.searchsorted(negated, negated, "right")

    best_ranks = n_above + n_hits - n_relevant_above
    n_relevant_behind = n_relevant_reaching - n_hits
    worst_ranks = n_reaching - n_relevant_behind
    optimistic = np.mean(n_hits / best_ranks)
    pessimistic = np.mean(n_hits / worst_ranks)
    return float(optimistic), float(pessimistic)

"""Average precision over whole rankings, with ties counted for and against the query."""

from __future__ import annotations

import numpy as np

from cusa.eval.metrics.per_query import Bounds
from cusa.eval.metrics.ranks import over_blocks


def average_precisions(
    queries: np.ndarray, candidates: np.ndarray, indptr: np.ndarray, indices: np.ndarray
) -> Bounds:
    """Compute each query's average precision: the mean of the precisions at its relevant candidates.

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
    optimistic, pessimistic = np.zeros(len(queries)), np.zeros(len(queries))

    def precisions_of_block(start: int, scores: np.ndarray) -> None:
        ascending = np.sort(scores, axis=1)
        for row in range(len(scores)):
            query = start + row
            relevant = indices[indptr[query] : indptr[query + 1]]
            if len(relevant):
                bounds = _average_precision(scores[row, relevant], ascending[row])
                optimistic[query], pessimistic[query] = bounds

    over_blocks(precisions_of_block, queries, candidates)
    return Bounds(optimistic, pessimistic)


def _average_precision(relevant_scores: np.ndarray, ascending: np.ndarray) -> tuple[float, float]:
    """Compute one query's average precision, ties counted for it and against it.

    Args:
        relevant_scores: float ``[r]``: similarities of the relevant candidates.
        ascending: float ``[m]``: similarities of all candidates, sorted.
    """
    scores = np.sort(relevant_scores)[::-1]
    n_found = np.arange(1, len(scores) + 1)
    n_more_similar = len(ascending) - np.searchsorted(ascending, scores, "right")
    n_as_similar = len(ascending) - np.searchsorted(ascending, scores, "left")
    # Of the relevant ones with the same score, those before and those after this one.
    n_relevant_above = np.searchsorted(-scores, -scores, "left")
    n_relevant_down_to = np.searchsorted(-scores, -scores, "right")
    best_ranks = n_more_similar + n_found - n_relevant_above
    worst_ranks = n_as_similar - (n_relevant_down_to - n_found)
    return float(np.mean(n_found / best_ranks)), float(np.mean(n_found / worst_ranks))

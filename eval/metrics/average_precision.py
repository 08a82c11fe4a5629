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
        indices: int64, without duplicates within a query.

    Returns:
        float64 ``[n]`` in 0 to 1, with ties counted for the query and against it; 0 for a query
        without a relevant candidate.

    Raises:
        EmbeddingsError: If an embedding is not finite, or its dot products cannot be ranked.
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
    """Compute one query's average precision with ties counted for it, and against it."""
    scores = np.sort(relevant_scores)
    n_hits = np.arange(len(scores), 0, -1)
    averages = []
    # Counted for the query, only greater scores are ahead; counted against it, equal ones are, too.
    for side in ("right", "left"):
        n_ahead = len(ascending) - np.searchsorted(ascending, scores, side)
        n_relevant_ahead = len(scores) - np.searchsorted(scores, scores, side)
        ranks = n_ahead - n_relevant_ahead + n_hits
        averages.append(float(np.mean(n_hits / ranks)))
    return averages[0], averages[1]

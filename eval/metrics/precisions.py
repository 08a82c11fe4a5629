"""R-Precision and average precision of a block of queries, from their similarities.

Both are those of Musgrave et al., A Metric Learning Reality Check (ECCV 2020), section 4.
"""

from __future__ import annotations

import numpy as np

_LEAST_GROUPS = 256  # groups of candidates, whose maxima bound the R-th largest score


def block_precisions(
    scores: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    depths: np.ndarray,
) -> np.ndarray:
    """Compute R-Precision and average precision of each query of a block.

    Args:
        scores: float ``[n, m]``.
        indptr: int64 ``[n + 1]``, not necessarily starting at 0.
        indices: int64: positions of the relevant candidates.
        depths: int64 ``[n]``: R of each query.

    Returns:
        float64 ``[4, n]``, 0 to 1: R-Precision, optimistic and pessimistic, then average precision,
        optimistic and pessimistic.
    """
    n_queries, n_candidates = scores.shape
    precisions = np.zeros((4, n_queries))
    columns = indices[indptr[0] : indptr[-1]]
    if not len(columns):
        return precisions

    n_relevant = np.diff(indptr)
    rows = np.repeat(np.arange(n_queries), n_relevant)
    is_relevant = np.zeros(scores.shape, bool)
    is_relevant[rows, columns] = True
    reachable_depths = np.minimum(depths, n_candidates)
    query, candidate = _contenders(scores, reachable_depths)
    hit = is_relevant[query, candidate]
    score = scores[query, candidate]

    # Among equal scores, False sorts first: hits ahead of misses, then misses ahead of hits.
    for tie_rule, tie_key in enumerate((~hit, hit)):
        order = np.lexsort((tie_key, -score, query))
        precisions[tie_rule::2] = _precisions(query, hit[order], reachable_depths)
    return precisions / np.maximum(depths, 1)


def _precisions(
    query: np.ndarray,
    hit: np.ndarray,
    depths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the hits among the first R candidates of each query, and sum the precisions at them.

    Args:
        query: int64 ``[p]``, ascending: query of each candidate.
        hit: bool ``[p]``: whether it is relevant; the candidates of a query are in ranked order.
        depths: int64 ``[n]``: R of each query.
    """
    n_queries = len(depths)
    starts = np.searchsorted(query, np.arange(n_queries))
    query_start = starts[query]
    rank = np.arange(len(query)) - query_start
    counts = hit & (rank < depths[query])
    hits_so_far = np.cumsum(counts)
    hits_before = hits_so_far - counts
    hits_so_far -= hits_before[query_start]  # without those of earlier queries
    precision_at_hits = counts * hits_so_far / (rank + 1)
    n_hits = np.bincount(query, counts, n_queries)
    return n_hits, np.bincount(query, precision_at_hits, n_queries)


def _contenders(
    scores: np.ndarray,
    depths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the candidates that may be among the first R of each query, ties included.

    Sorting all candidates is slow. They are split into groups instead: a query's R-th largest group
    maximum is no larger than its R-th largest score, so no candidate below it is among the first R.

    Returns:
        Queries, ascending, and their candidates: int64 ``[p]`` each.
    """
    n_queries, n_candidates = scores.shape
    # With several groups for each of the first R, few other candidates are left.
    deepest = int(depths.max())
    n_groups = min(n_candidates, max(_LEAST_GROUPS, 4 * deepest))
    n_grouped = n_candidates // n_groups * n_groups
    grouped = scores[:, :n_grouped].reshape(n_queries, -1, n_groups)
    maxima = grouped.max(axis=1)
    maxima.sort(axis=1)
    columns = n_groups - np.maximum(depths, 1)
    thresholds = maxima[np.arange(n_queries), columns]
    positions = np.flatnonzero(scores >= thresholds[:, None])
    return np.divmod(positions, n_candidates)

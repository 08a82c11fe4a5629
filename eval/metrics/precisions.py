"""R-Precision and average precision of a block of queries, from their similarities.

Both are those of Musgrave et al., A Metric Learning Reality Check (ECCV 2020), section 4.
"""

from __future__ import annotations

import numpy as np

_LEAST_GROUPS = 256  # of candidates, whose maxima tell which of them can be among the first R


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
        indices: int64 rows of relevant candidates.
        depths: int64 ``[n]``: R.

    Returns:
        float64 ``[4, n]``: R-Precision optimistic and pessimistic, average precision likewise.
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

    # Of equal scores, those whose key is False come first: the hits, then the misses.
    for tie_rule, tie_key in enumerate((~hit, hit)):
        order = np.lexsort((tie_key, -score, query))
        precisions[tie_rule::2] = _precisions(query, hit[order], reachable_depths)
    return precisions / np.maximum(depths, 1)


def _precisions(
    query: np.ndarray,
    hit: np.ndarray,
    depths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Add up the hits among the first R of each query, and the precisions at them.

    Args:
        query: int64 ``[p]``, ascending: query of each ranked candidate.
        hit: bool ``[p]``: whether it is relevant; candidates of a query from the first on.
        depths: int64 ``[n]``: R.
    """
    n_queries = len(depths)
    starts = np.searchsorted(query, np.arange(n_queries))
    query_start = starts[query]
    rank = np.arange(len(query)) - query_start
    counts = hit & (rank < depths[query])
    hits_so_far = np.cumsum(counts)
    hits_before = hits_so_far - counts
    hits_so_far -= hits_before[query_start]  # those of the queries before
    precision_at_hits = counts * hits_so_far / (rank + 1)
    n_hits = np.bincount(query, counts, n_queries)
    return n_hits, np.bincount(query, precision_at_hits, n_queries)


def _contenders(
    scores: np.ndarray,
    depths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the candidates that can be among the first R of each query, and all that tie with them.

    Sorting all candidates is slow, so they are put into groups: a query's R-th largest group
    maximum is no larger than its R-th largest score, and no candidate below it is among the
    first R.

    Returns:
        Query, ascending, and candidate of each: int64 ``[p]`` both.
    """
    n_queries, n_candidates = scores.shape
    # Several groups for each of the first R, so that few candidates besides them are left.
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

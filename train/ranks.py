"""Exact ranks by similarity, a block of queries at a time; the trainer's validation and cusa-eval share them."""

from __future__ import annotations

import numpy as np

from cusa.data.errors import CusaError

_BLOCK_BYTES = 64 * 2**20  # of similarities at once


def best_ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
) -> np.ndarray:
    """Rank of the best relevant candidate of each query, 0 being first.

    Ties count against the query: of candidates with equal similarity, the irrelevant ones come first.

    Args:
        queries: float ``[n, d]``; similarities are dot products in float32, in float64 if given so.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64 candidate rows.
        exclude: int64 ``[n]``, a candidate of each query that is no candidate (itself), -1 for none.

    Returns:
        int64 ``[n]``; -1 for a query without a relevant candidate.

    Raises:
        CusaError: If an embedding is not finite.
    """
    wide = np.result_type(queries, candidates, np.float32)
    queries, candidates = np.ascontiguousarray(queries, wide), np.ascontiguousarray(candidates, wide)
    for name, array in (("query", queries), ("candidate", candidates)):
        if not np.isfinite(array).all():  # NaN compares as "not ahead" and would look like a perfect rank
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise CusaError(f"{name} embedding {row} is not finite; such embeddings cannot be ranked")
    block = max(1, _BLOCK_BYTES // (wide.itemsize * max(1, len(candidates))))
    parts = [
        best_ranks_from_scores(
            queries[a : a + block] @ candidates.T,
            indptr[a : a + block + 1],
            indices,
            None if exclude is None else exclude[a : a + block],
        )
        for a in range(0, len(queries), block)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def best_ranks_from_scores(
    scores: np.ndarray, indptr: np.ndarray, indices: np.ndarray, exclude: np.ndarray | None = None
) -> np.ndarray:
    """As :func:`best_ranks`, from similarities ``[n, m]`` of any float type.

    Args:
        scores: float ``[n, m]``; overwritten where ``exclude`` names an entry.
        indptr: int64 ``[n + 1]``, not necessarily starting at 0.
        indices: int64 candidate rows.
        exclude: int64 ``[n]`` or ``None``.
    """
    n = len(scores)
    if exclude is not None:
        rows = np.flatnonzero(exclude >= 0)
        scores[rows, exclude[rows]] = -np.inf
    query = np.repeat(np.arange(n), np.diff(indptr))
    candidate = indices[indptr[0] : indptr[-1]]
    best = np.full(n, -np.inf, scores.dtype)
    np.maximum.at(best, query, scores[query, candidate])
    # A candidate is ahead if it is irrelevant and at least as similar as the best relevant one.
    ahead = (scores >= best[:, None]).sum(axis=1)
    relevant_ahead = np.bincount(query[scores[query, candidate] >= best[query]], minlength=n)
    ranks = ahead - relevant_ahead
    ranks[np.diff(indptr) == 0] = -1
    return ranks.astype(np.int64)


def cross_modal_relevance(
    caption_image: np.ndarray, n_images: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Relevance of captions to images and back, by the labels.

    Args:
        caption_image: int64 ``[n_captions]``: index of each caption's image, -1 for none.
        n_images: Number of images.

    Returns:
        (indptr, indices) for image-to-text and for text-to-image, as :func:`best_ranks` takes them.
    """
    order = np.argsort(caption_image, kind="stable")
    bounds = np.searchsorted(caption_image[order], np.arange(n_images + 1))
    has_image = np.concatenate([[0], np.cumsum(caption_image >= 0)])
    return (bounds, order), (has_image, caption_image[caption_image >= 0])


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Percent of the queries whose best rank is below ``k``, those without a relevant candidate (-1) being misses.

    Args:
        ranks: int64 ``[n]``, n at least 1.
        k: Cut.
    """
    return 100.0 * float(np.count_nonzero((ranks >= 0) & (ranks < k))) / len(ranks)

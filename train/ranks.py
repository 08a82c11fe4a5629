"""Exact ranks by similarity, a block of queries at a time; the trainer's validation and cusa-eval share them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from cusa.data.errors import CusaError
from cusa.train.threads import one_core_threads

T = TypeVar("T")

_BLOCK_BYTES = 256 * 2**20  # of similarities at once, at most
_BLOCK_ROWS = 256  # fewer queries at a time are slower, more are no faster
_STRIP_BYTES = 2 * 2**20  # of them that are counted at once: they stay in the cache
_OWN_BLOCK = 128  # images whose own captions' similarities are taken at once
# Rows and columns of a product: BLAS adds up smaller ones in another order, and equal embeddings would not tie.
_LEAST = 16


class RankBounds(NamedTuple):
    """Ranks of each query's best relevant candidate, 0 being first; int64 ``[n]``, -1 for a query that has none.

    Attributes:
        optimistic: Irrelevant candidates that are more similar: ties count for the query.
        pessimistic: Irrelevant candidates that are at least as similar: ties count against it.
    """

    optimistic: np.ndarray
    pessimistic: np.ndarray


def best_ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
) -> np.ndarray:
    """The pessimistic ranks of :func:`rank_bounds`: int64 ``[n]``."""
    return rank_bounds(queries, candidates, indptr, indices, exclude).pessimistic


def rank_bounds(
    queries: np.ndarray,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    exclude: np.ndarray | None = None,
) -> RankBounds:
    """Rank of the best relevant candidate of each query.

    Args:
        queries: float ``[n, d]``; similarities are dot products in float32, in float64 if given so.
        candidates: float ``[m, d]``.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64 candidate rows.
        exclude: int64 ``[n]``, a candidate of each query that is no candidate (itself), -1 for none.

    Raises:
        CusaError: If an embedding is not finite, or dimensions differ.
    """

    def ranked(a: int, scores: np.ndarray) -> RankBounds:
        own = None if exclude is None else exclude[a : a + len(scores)]
        return block_bounds(scores, indptr[a : a + len(scores) + 1], indices, own)

    return join_bounds(over_blocks(ranked, queries, candidates))


def join_bounds(parts: Sequence[RankBounds]) -> RankBounds:
    """Ranks of consecutive queries, one after the other."""
    empty = np.zeros(0, np.int64)
    return RankBounds(*(np.concatenate([empty, *(part[side] for part in parts)]) for side in (0, 1)))


def over_blocks(
    work: Callable[[int, np.ndarray], T], queries: np.ndarray, candidates: np.ndarray, block_bytes: int | None = None
) -> list[T]:
    """What a function makes of the similarities of all queries, a block of them at a time; each core takes blocks.

    Args:
        work: Gets a block's first query and the dot products, float32 or float64 ``[b, m]``, which it may overwrite.
        queries: float ``[n, d]``.
        candidates: float ``[m, d]``.
        block_bytes: Of all blocks at a time, at most, or 16 queries' each; ``None``: 256 MiB and 256 queries' each.

    Returns:
        Its results in the order of the queries.

    Raises:
        CusaError: If an embedding is not finite, or dimensions differ.
    """
    q, c = _finite_tensors(queries, candidates)
    m, c = len(c), _padded(c)
    threads = torch.get_num_threads()
    rows = max(_LEAST, (block_bytes or _BLOCK_BYTES) // threads // (q.element_size() * len(c)))
    rows = rows if block_bytes else min(rows, _BLOCK_ROWS)
    starts = range(0, len(q), rows)
    held = threading.local()

    def block(a: int) -> T:
        if not hasattr(held, "scores"):
            held.scores = torch.empty(max(_LEAST, min(rows, len(q))), len(c), dtype=q.dtype)
        part = q[a : a + rows]
        padded = _padded(part)
        return work(a, torch.mm(padded, c.T, out=held.scores[: len(padded)])[: len(part), :m].numpy())

    if len(starts) < 2:
        return [block(a) for a in starts]
    with one_core_threads(min(threads, len(starts))) as pool:
        return list(pool.map(block, starts))


def _padded(rows: torch.Tensor) -> torch.Tensor:
    return rows if len(rows) >= _LEAST else torch.nn.functional.pad(rows, (0, 0, 0, _LEAST - len(rows)))


def _finite_tensors(queries: np.ndarray, candidates: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    if queries.shape[1:] != candidates.shape[1:]:
        raise CusaError(f"queries of shape {queries.shape} and candidates of {candidates.shape} have no dot products")
    wide = np.result_type(queries, candidates, np.float32)
    found = []
    for name, array in (("query", queries), ("candidate", candidates)):
        if not np.isfinite(array).all():  # NaN compares as "not ahead" and would look like a perfect rank
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise CusaError(f"{name} embedding {row} is not finite; such embeddings cannot be ranked")
        found.append(torch.from_numpy(np.require(array, wide, ["C", "W"])))
    return found[0], found[1]


def rank_bounds_from_scores(scores: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> RankBounds:
    """As :func:`rank_bounds`, from similarities of any kind.

    Args:
        scores: float ``[n, m]``.
        indptr: int64 ``[n + 1]``.
        indices: int64 candidate rows.

    Raises:
        CusaError: If a score is not finite.
    """

    def ranked(a: int) -> RankBounds:
        part = scores[a : a + rows]
        if not np.isfinite(part).all():  # NaN compares as "not ahead" and would look like a perfect rank
            raise CusaError("scores hold NaN or infinity; such scores cannot be ranked")
        return block_bounds(part, indptr[a : a + len(part) + 1], indices)

    rows = max(1, _STRIP_BYTES // max(1, scores.shape[1] * scores.itemsize))
    with one_core_threads(torch.get_num_threads()) as pool:
        return join_bounds(list(pool.map(ranked, range(0, len(scores), rows))))


def block_bounds(
    scores: np.ndarray, indptr: np.ndarray, indices: np.ndarray, exclude: np.ndarray | None = None
) -> RankBounds:
    """Ranks of a block of queries.

    Args:
        scores: float ``[n, m]``, finite; overwritten where ``exclude`` names an entry.
        indptr: int64 ``[n + 1]``, not necessarily starting at 0.
        indices: int64 candidate rows.
        exclude: int64 ``[n]`` or ``None``.
    """
    n = len(scores)
    if exclude is not None:
        rows = np.flatnonzero(exclude >= 0)
        scores[rows, exclude[rows]] = -np.inf
    query = np.repeat(np.arange(n), np.diff(indptr))
    own = scores[query, indices[indptr[0] : indptr[-1]]]
    best = np.full(n, -np.inf, scores.dtype)
    np.maximum.at(best, query, own)
    more, as_much = _ahead(scores, best, None)[0]
    as_much -= np.bincount(query[own >= best[query]], minlength=n)
    answered = np.diff(indptr) > 0
    return RankBounds(np.where(answered, more, -1), np.where(answered, as_much, -1))


def two_way_rank_bounds(
    images: np.ndarray, texts: np.ndarray, caption_image: np.ndarray
) -> tuple[RankBounds, RankBounds]:
    """Ranks from images to their captions and back, from one pass over the similarities.

    Args:
        images: float ``[n, d]``; similarities are dot products in float32, in float64 if given so.
        texts: float ``[m, d]``.
        caption_image: int64 ``[m]``: index of each caption's image, -1 for none.

    Returns:
        Of the images, the best of its captions; of the texts, their image.

    Raises:
        CusaError: If an embedding is not finite, or dimensions differ.
    """
    (bounds, order), _ = cross_modal_relevance(caption_image, len(images))
    own = np.full(len(texts), np.inf, np.result_type(images, texts, np.float32))  # of each caption with its image
    for a in range(0, len(images), _OWN_BLOCK):
        mine = order[bounds[a] : bounds[min(a + _OWN_BLOCK, len(images))]]
        [scores] = over_blocks(_copied, images[a : a + _OWN_BLOCK], texts[mine], block_bytes=sys.maxsize)
        own[mine] = scores[caption_image[mine] - a, np.arange(len(mine))]
    ahead = np.zeros((2, len(texts)), np.int64)  # of each caption's image
    adding = threading.Lock()

    def ranked(a: int, scores: np.ndarray) -> RankBounds:
        n = len(scores)
        mine = order[bounds[a] : bounds[a + n]]
        image = caption_image[mine] - a
        relevant = scores[image, mine]
        best = np.full(n, -np.inf, scores.dtype)
        np.maximum.at(best, image, relevant)
        (more, as_much), (column_more, column_as_much) = _ahead(scores, best, own)
        as_much -= np.bincount(image[relevant >= best[image]], minlength=n)
        column_as_much[mine] -= relevant >= own[mine]
        column_more[mine] -= relevant > own[mine]
        with adding:
            ahead[0] += column_more
            ahead[1] += column_as_much
        answered = np.diff(bounds[a : a + n + 1]) > 0
        return RankBounds(np.where(answered, more, -1), np.where(answered, as_much, -1))

    of_images = join_bounds(over_blocks(ranked, images, texts))
    return of_images, RankBounds(*np.where(caption_image >= 0, ahead, -1))


def _copied(_: int, scores: np.ndarray) -> np.ndarray:
    return scores.copy()


def _ahead(
    scores: np.ndarray, row_bound: np.ndarray, column_bound: np.ndarray | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """How many scores of each row are above its bound, and at least it; the same of each column if asked for.

    Comparing is cheap; adding up booleans one by one is not, so they are added up eight to a word, byte by byte.
    """
    n, m = scores.shape
    strip = min(255, max(1, _STRIP_BYTES // max(1, m * scores.itemsize)))  # a byte counts to 255
    held = np.zeros((min(strip, n), -(-m // 8) * 8), bool)
    comparisons: tuple[Callable[..., np.ndarray], ...] = (np.greater, np.greater_equal)
    by_row = tuple(np.zeros(n, np.int64) for _ in comparisons)
    by_column = tuple(np.zeros(m if column_bound is not None else 0, np.int64) for _ in comparisons)
    for a in range(0, n, strip):
        part = scores[a : a + strip]
        mask = held[: len(part)]
        for compare, rows, columns in zip(comparisons, by_row, by_column, strict=True):
            compare(part, row_bound[a : a + strip, None], out=mask[:, :m])
            words = mask.view(np.uint64)
            for b in range(0, words.shape[1], 255):
                lanes = words[:, b : b + 255].sum(axis=1, dtype=np.uint64)
                rows[a : a + strip] += lanes.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
            if column_bound is not None:
                compare(part, column_bound, out=mask[:, :m])
                columns += mask[:, :m].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return (by_row[0], by_row[1]), (by_column[0], by_column[1])


def cross_modal_relevance(
    caption_image: np.ndarray, n_images: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Relevance of captions to images and back, by the labels.

    Args:
        caption_image: int64 ``[n_captions]``: index of each caption's image, -1 for none.
        n_images: Number of images.

    Returns:
        (indptr, indices) for image-to-text and for text-to-image, as :func:`rank_bounds` takes them.
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

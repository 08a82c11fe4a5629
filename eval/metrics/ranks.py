"""Exact ranks by similarity, a block of queries at a time; the trainer's validation and cusa-eval share them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from cusa.data.errors import EmbeddingsError
from cusa.eval.metrics.caption_images import checked_caption_image, cross_modal_relevance
from cusa.eval.metrics.equal_rows import column_sharing, first_equal_row
from cusa.eval.metrics.one_core_threads import one_core_threads
from cusa.eval.metrics.pair_scores import PairScores

T = TypeVar("T")

_BLOCK_BYTES = 256 * 2**20  # of similarities at once, at most
_BLOCK_ROWS = 256  # fewer queries at a time are slower, more are no faster
_LEAST_ROWS = 16  # also where a block's bytes are fewer
_STRIP_BYTES = 2 * 2**20  # of them that are counted at once: they stay in the cache


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
        candidates: float ``[m, d]``; equal ones are equally similar to a query, to the bit.
        indptr: int64 ``[n + 1]``; query i's relevant candidates are ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int64 candidate rows.
        exclude: int64 ``[n]``, a candidate of each query that is no candidate (itself), -1 for none.

    Raises:
        EmbeddingsError: If embeddings have no dot products, or none that can be ranked: see
            :func:`over_blocks`.
    """

    def ranked(a: int, scores: np.ndarray) -> RankBounds:
        own = None if exclude is None else exclude[a : a + len(scores)]
        return block_bounds(scores, indptr[a : a + len(scores) + 1], indices, own)

    return join_bounds(over_blocks(ranked, queries, candidates))


def join_bounds(parts: Sequence[RankBounds]) -> RankBounds:
    """Ranks of consecutive queries, one after the other."""
    empty = np.zeros(0, np.int64)
    return RankBounds(
        *(np.concatenate([empty, *(part[side] for part in parts)]) for side in (0, 1))
    )


def over_blocks(
    work: Callable[[int, np.ndarray], T], queries: np.ndarray, candidates: np.ndarray
) -> list[T]:
    """Apply a function to the similarities of all queries, a block at a time on each core.

    A query is equally similar to equal candidates, to the bit: a BLAS adds up the columns at the
    edge of a product in another order than those within, so equal candidates are found before the
    product and share one column of it.

    Args:
        work: Gets a block's first query and the dot products, float32 or float64 ``[b, m]``, which it may overwrite.
        queries: float ``[n, d]``.
        candidates: float ``[m, d]``.

    Returns:
        The function's results in the order of the queries.

    Raises:
        EmbeddingsError: If an embedding is not finite, dimensions differ, or values are so large or
            so small that their products overflow or vanish.
    """
    query_rows, candidate_rows = _rankable(queries, candidates)
    share_columns = column_sharing(first_equal_row(candidate_rows))

    def shared(start: int, scores: np.ndarray) -> T:
        share_columns(scores)
        return work(start, scores)

    return _over_products(shared, query_rows, candidate_rows)


def _over_products(
    work: Callable[[int, np.ndarray], T], queries: np.ndarray, candidates: np.ndarray
) -> list[T]:
    """As :func:`over_blocks`, of :func:`_rankable` rows, with the products as the BLAS has them."""
    query_rows, candidate_rows = torch.from_numpy(queries), torch.from_numpy(candidates)
    threads = torch.get_num_threads()
    bytes_per_query = max(1, queries.itemsize * len(candidates))
    block_rows = min(_BLOCK_ROWS, max(_LEAST_ROWS, _BLOCK_BYTES // threads // bytes_per_query))
    starts = range(0, len(queries), block_rows)
    held = threading.local()

    def block(start: int) -> T:
        if not hasattr(held, "scores"):
            held.scores = torch.empty(
                min(block_rows, len(queries)), len(candidates), dtype=query_rows.dtype
            )
        part = query_rows[start : start + block_rows]
        return work(start, torch.mm(part, candidate_rows.T, out=held.scores[: len(part)]).numpy())

    if len(starts) < 2:
        return [block(start) for start in starts]
    with one_core_threads(min(threads, len(starts))) as pool:
        return list(pool.map(block, starts))


def _rankable(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in one dtype, float32 or float64, once it is known that their dot products can be ranked."""
    if queries.ndim != 2 or queries.shape[1:] != candidates.shape[1:]:
        raise EmbeddingsError(
            f"queries of shape {queries.shape} and candidates of {candidates.shape} have no dot products; both must "
            "be [n, d] with one d"
        )
    dtype = ranking_dtype(queries, candidates)
    query_rows, candidate_rows = (
        np.require(array, dtype, ["C", "W"]) for array in (queries, candidates)
    )
    query_sizes, candidate_sizes = (
        _largest(query_rows, "query"),
        _largest(candidate_rows, "candidate"),
    )
    greatest = float(candidate_sizes.max(initial=0))
    limits, dimension = np.finfo(dtype), queries.shape[1]
    with np.errstate(over="ignore"):
        products = query_sizes.astype(np.float64) * greatest
        if (products * dimension > float(limits.max)).any():
            problem, query = "too large", int(products.argmax())
        elif ((products < float(limits.tiny)) & (query_sizes > 0)).any() and greatest > 0:
            problem, query = "too small", int(np.where(query_sizes > 0, products, np.inf).argmin())
        else:
            return query_rows, candidate_rows
    raise EmbeddingsError(
        f"query embedding {query} has dot products that are {problem} for {dtype}; L2-normalise the embeddings",
        name=f"query {query}",
    )


def ranking_dtype(*embeddings: np.ndarray) -> np.dtype:
    """Choose the type of similarities: float64 for what float32 cannot hold, else float32.

    Raises:
        EmbeddingsError: If embeddings are no numbers.
    """
    for rows in embeddings:
        if rows.dtype.kind not in "fiu":
            raise EmbeddingsError(
                f"embeddings of {rows.dtype} cannot be ranked; give float16, float32 or float64"
            )
    widest = np.result_type(*embeddings, np.float32)
    return np.dtype(np.float32 if widest == np.float32 else np.float64)


def _largest(rows: np.ndarray, what: str) -> np.ndarray:
    """The greatest absolute value of each row, ``[n]``, which must be finite."""
    if not rows.size:
        return np.zeros(len(rows), rows.dtype)
    least, most = torch.aminmax(torch.from_numpy(rows), dim=1)
    sizes = torch.maximum(-least, most).numpy()
    wrong = ~np.isfinite(sizes)
    if wrong.any():  # NaN compares as "not ahead" and would look like a perfect rank
        row = int(wrong.argmax())
        raise EmbeddingsError(
            f"{what} embedding {row} is not finite; such embeddings cannot be ranked",
            name=f"{what} {row}",
        )
    return sizes


def rank_bounds_from_scores(
    scores: np.ndarray, indptr: np.ndarray, indices: np.ndarray
) -> RankBounds:
    """As :func:`rank_bounds`, from similarities of any kind.

    Args:
        scores: float ``[n, m]``.
        indptr: int64 ``[n + 1]``.
        indices: int64 candidate rows.

    Raises:
        EmbeddingsError: If a score is no number, or not finite.
    """
    if scores.dtype.kind not in "fiu":
        raise EmbeddingsError(
            f"scores of {scores.dtype} cannot be ranked; give float32 or float64", name="scores"
        )
    scores = scores if scores.dtype.kind == "f" else scores.astype(np.float64)

    def ranked(a: int) -> RankBounds:
        part = scores[a : a + rows]
        if not np.isfinite(
            part
        ).all():  # NaN compares as "not ahead" and would look like a perfect rank
            raise EmbeddingsError(
                "scores hold NaN or infinity; such scores cannot be ranked", name="scores"
            )
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
            Equal images are equally similar to a caption, to the bit, as equal captions are to an
            image.
        texts: float ``[m, d]``.
        caption_image: int ``[m]``: index of each caption's image, -1 for none.

    Returns:
        Of the images, the best of its captions; of the texts, their image.

    Raises:
        EmbeddingsError: If embeddings have no dot products, or none that can be ranked; or
            ``caption_image`` has another length, or holds something else than indices of images.
    """
    caption_image = checked_caption_image(caption_image, len(images), len(texts))
    images, texts = _rankable(images, texts)
    (bounds, order), _ = cross_modal_relevance(caption_image, len(images))
    pairs = PairScores(images, texts, caption_image)
    ahead = np.zeros((2, len(texts)), np.int64)  # of each caption's image
    adding = threading.Lock()

    def ranked(a: int, scores: np.ndarray) -> RankBounds:
        n = len(scores)
        pairs.put(a, scores)
        mine = order[bounds[a] : bounds[a + n]]
        image, own = caption_image[mine] - a, pairs.scores[mine]
        best = np.full(n, -np.inf, scores.dtype)
        np.maximum.at(best, image, own)
        (more, as_much), (column_more, column_as_much) = _ahead(scores, best, pairs.scores)
        as_much -= np.bincount(image[own >= best[image]], minlength=n)
        column_as_much[mine] -= 1  # a caption's own image is not ahead of itself
        with adding:
            ahead[0] += column_more
            ahead[1] += column_as_much
        answered = np.diff(bounds[a : a + n + 1]) > 0
        return RankBounds(np.where(answered, more, -1), np.where(answered, as_much, -1))

    of_images = join_bounds(_over_products(ranked, images, texts))
    return of_images, RankBounds(*np.where(caption_image >= 0, ahead, -1))


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
                rows[a : a + strip] += (
                    lanes.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
                )
            if column_bound is not None:
                compare(part, column_bound, out=mask[:, :m])
                columns += mask[:, :m].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return (by_row[0], by_row[1]), (by_column[0], by_column[1])


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Percent of the queries whose best rank is below ``k``, those without a relevant candidate (-1) being misses.

    Args:
        ranks: int64 ``[n]``, n at least 1.
        k: Cut.
    """
    return 100.0 * float(np.count_nonzero((ranks >= 0) & (ranks < k))) / len(ranks)

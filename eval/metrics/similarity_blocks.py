"""Similarities of all queries with all candidates, a block of queries at a time, on every core."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from cusa.data.errors import EmbeddingsError
from cusa.eval.metrics.equal_rows import copied_columns, first_equal_row
from cusa.eval.metrics.one_core_threads import one_core_threads

T = TypeVar("T")

_BLOCK_BYTES = 256 * 2**20  # most similarities that all threads together hold at once
_BLOCK_ROWS = 256  # fewer queries at a time are slower, more are no faster
_LEAST_BLOCK_ROWS = 16  # even if that exceeds _BLOCK_BYTES


def over_blocks(
    work: Callable[[int, np.ndarray], T],
    queries: np.ndarray,
    candidates: np.ndarray,
) -> list[T]:
    """Apply a function to the similarities of all queries, a block of queries per core at a time.

    Equal candidates get bit for bit the same similarity to a query. A BLAS sums the columns at the
    edge of a product in another order than those inside, so equal candidates are found beforehand
    and share one column of the product.

    Args:
        work: Function of the number of a block's first query and of the block's dot products,
            float32 or float64 ``[b, m]``, which it may overwrite; called from several threads.
        queries: float ``[n, d]``.
        candidates: float ``[m, d]``.

    Returns:
        The function's results in the order of the queries.

    Raises:
        EmbeddingsError: If embeddings are not real numbers or not finite, dimensions differ, or
            values are so large or so small that their products overflow or vanish.
    """
    query_rows, candidate_rows = rankable_rows(queries, candidates)
    copies, originals = copied_columns(first_equal_row(candidate_rows))

    def work_on_shared(
        start: int,
        scores: np.ndarray,
    ) -> T:
        scores[:, copies] = scores[:, originals]
        return work(start, scores)

    return over_products(work_on_shared, query_rows, candidate_rows)


def over_products(
    work: Callable[[int, np.ndarray], T],
    queries: np.ndarray,
    candidates: np.ndarray,
) -> list[T]:
    """Apply a function as :func:`over_blocks` does, but to products as the BLAS rounds them.

    Args:
        work: As for :func:`over_blocks`.
        queries: ``[n, d]``, as :func:`rankable_rows` returns them.
        candidates: ``[m, d]``, as :func:`rankable_rows` returns them.
    """
    query_rows = torch.from_numpy(queries)
    candidate_rows = torch.from_numpy(candidates)
    n_threads = torch.get_num_threads()
    bytes_per_query = max(1, queries.itemsize * len(candidates))
    rows_that_fit = _BLOCK_BYTES // n_threads // bytes_per_query
    block_rows = min(_BLOCK_ROWS, max(_LEAST_BLOCK_ROWS, rows_that_fit))
    buffer_rows = min(block_rows, len(queries))
    buffer_shape = (buffer_rows, len(candidates))
    # Each thread reuses one buffer for all its blocks.
    thread_buffers = threading.local()

    def work_on_block(start: int) -> T:
        if not hasattr(thread_buffers, "scores"):
            thread_buffers.scores = torch.empty(buffer_shape, dtype=query_rows.dtype)
        block = query_rows[start : start + block_rows]
        scores = thread_buffers.scores[: len(block)]
        torch.mm(block, candidate_rows.T, out=scores)
        return work(start, scores.numpy())

    starts = range(0, len(queries), block_rows)
    # A single block is computed here, on all cores.
    if len(starts) < 2:
        return [work_on_block(start) for start in starts]
    n_workers = min(n_threads, len(starts))
    with one_core_threads(n_workers) as pool:
        return list(pool.map(work_on_block, starts))


def rankable_rows(
    queries: np.ndarray,
    candidates: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Check that the dot products of embeddings can be ranked, and convert both to one dtype.

    Args:
        queries: float ``[n, d]``.
        candidates: float ``[m, d]``.

    Returns:
        Both, C-contiguous, in the dtype that :func:`ranking_dtype` chooses.

    Raises:
        EmbeddingsError: As :func:`over_blocks`.
    """
    have_equal_dimension = queries.shape[1:] == candidates.shape[1:]
    if queries.ndim != 2 or not have_equal_dimension:
        raise EmbeddingsError(
            f"queries of shape {queries.shape} and candidates of {candidates.shape} have no dot "
            "products; both must be [n, d] with the same d",
            name="candidates",
        )
    dtype = ranking_dtype(queries, candidates)
    # torch warns about read-only arrays, so they are copied.
    query_rows = np.require(queries, dtype, ["C", "W"])
    candidate_rows = np.require(candidates, dtype, ["C", "W"])
    query_sizes = _largest_values(query_rows, "query")
    candidate_sizes = _largest_values(candidate_rows, "candidate")
    candidate_size = float(candidate_sizes.max(initial=0))
    _check_range(query_sizes, candidate_size, queries.shape[1])
    return query_rows, candidate_rows


def ranking_dtype(*embeddings: np.ndarray) -> np.dtype:
    """Choose the dtype of similarities: float32 if it holds all embeddings, else float64.

    Raises:
        EmbeddingsError: If embeddings are not real numbers.
    """
    for rows in embeddings:
        if rows.dtype.kind not in "fiu":
            raise EmbeddingsError(
                f"embeddings of {rows.dtype} cannot be ranked; give float16, float32 or float64"
            )
    widest = np.result_type(*embeddings, np.float32)
    if widest == np.float32:
        return np.dtype(np.float32)
    return np.dtype(np.float64)


def _largest_values(
    rows: np.ndarray,
    item_name: str,
) -> np.ndarray:
    """Return the largest absolute value of each row, ``[n]``; refuse rows that are not finite."""
    if not rows.size:
        return np.zeros(len(rows), rows.dtype)
    tensor = torch.from_numpy(rows)
    least, most = torch.aminmax(tensor, dim=1)
    sizes = torch.maximum(-least, most).numpy()

    # NaN compares as "not ahead" and would look like a perfect rank.
    is_unusable = ~np.isfinite(sizes)
    if is_unusable.any():
        row = int(is_unusable.argmax())
        raise EmbeddingsError(
            f"{item_name} embedding {row} is not finite and cannot be ranked; leave that item out",
            name=f"{item_name} {row}",
        )
    return sizes


def _check_range(
    query_sizes: np.ndarray,
    candidate_size: float,
    dimension: int,
) -> None:
    """Refuse queries whose dot products may overflow or vanish.

    A size is the largest absolute value of a query, or of all candidates.
    """
    dtype = query_sizes.dtype
    limits = np.finfo(dtype)
    with np.errstate(over="ignore"):
        products = query_sizes.astype(np.float64) * candidate_size
        overflows = products * dimension > float(limits.max)
    is_tiny = products < float(limits.tiny)
    vanishes = is_tiny & (query_sizes > 0)

    if overflows.any():
        problem, query = "too large", int(products.argmax())
    elif vanishes.any() and candidate_size > 0:
        not_zero = np.where(query_sizes > 0, products, np.inf)
        problem, query = "too small", int(not_zero.argmin())
    else:
        return
    raise EmbeddingsError(
        f"query embedding {query} has dot products that are {problem} for {dtype}; L2-normalise "
        "the embeddings",
        name=f"query {query}",
    )

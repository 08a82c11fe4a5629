"""Rows of a matrix that are equal, found by comparing them and not what a product makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def first_equal_row(rows: np.ndarray) -> np.ndarray:
    """Find the first row that equals each row.

    Args:
        rows: float ``[n, d]``, finite; 0.0 and -0.0 are equal.

    Returns:
        int64 ``[n]``: a row's own position where no row before it is equal.
    """
    first = np.arange(len(rows))
    if not rows.size:
        return np.zeros_like(first)
    # Sorting whole rows is slow, and equal rows begin alike: of most matrices the first column
    # tells all rows apart.
    _, values, counts = np.unique(rows[:, 0], return_inverse=True, return_counts=True)
    suspects = np.flatnonzero(counts[values] > 1)
    if not len(suspects):
        return first
    _, leaders, groups = np.unique(
        _row_bytes(rows[suspects]), return_index=True, return_inverse=True
    )
    first[suspects] = suspects[leaders[groups]]
    return first


def _row_bytes(rows: np.ndarray) -> np.ndarray:
    """Each row as one value, compared byte by byte: void ``[n]``."""
    without_negative_zero = np.ascontiguousarray(rows + rows.dtype.type(0))
    row_type = np.dtype((np.void, rows.shape[1] * rows.dtype.itemsize))
    return without_negative_zero.view(row_type).reshape(len(rows))


def column_sharing(first: np.ndarray) -> Callable[[np.ndarray], None]:
    """Make a function that gives equal candidates' columns the values of the first of them.

    Args:
        first: int64 ``[m]``: of each candidate, the first that is equal (:func:`first_equal_row`).
    """
    copies = np.flatnonzero(first != np.arange(len(first)))
    originals = first[copies]

    def share_columns(scores: np.ndarray) -> None:
        if len(copies):
            scores[:, copies] = scores[:, originals]

    return share_columns

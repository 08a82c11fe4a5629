"""Counts of the scores ahead of a bound, by row and by column of a block of similarities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_CACHE_BYTES = 2 * 2**20  # size of the scores compared at once
_MOST_PER_BYTE = 255  # the largest count that a byte holds


class AheadCounts(NamedTuple):
    """Numbers of scores above a bound, and of scores at or above it; both int64 ``[n]``."""

    above: np.ndarray
    reaching: np.ndarray

    @staticmethod
    def zeros(length: int) -> AheadCounts:
        """Return counts of zero, ``[length]``."""
        above = np.zeros(length, np.int64)
        return AheadCounts(above, np.zeros_like(above))


def count_ahead(
    scores: np.ndarray,
    row_bounds: np.ndarray,
    column_bounds: np.ndarray | None,
) -> tuple[AheadCounts, AheadCounts]:
    """Count, per row and per column, the scores above its bound and those at or above it.

    Args:
        scores: float ``[n, m]``.
        row_bounds: Bound of each row, ``[n]``, in the dtype of ``scores``.
        column_bounds: Bound of each column, ``[m]``, in the same dtype; if ``None``, columns are
            not counted.

    Returns:
        Counts by row, ``[n]``, and by column, ``[m]``, or ``[0]`` if columns are not counted.
    """
    n_rows, n_columns = scores.shape
    by_row = AheadCounts.zeros(n_rows)
    by_column = AheadCounts.zeros(0 if column_bounds is None else n_columns)
    # Column counts of a strip are bytes, so a strip may not have more rows than a byte can count.
    strip_rows = min(rows_in_cache(scores), _MOST_PER_BYTE)
    tallies = [
        (np.greater, by_row.above, by_column.above),
        (np.greater_equal, by_row.reaching, by_column.reaching),
    ]
    for start in range(0, n_rows, strip_rows):
        rows = slice(start, start + strip_rows)
        strip = scores[rows]
        for compare, row_counts, column_counts in tallies:
            mask = compare(strip, row_bounds[rows, None])
            # Counting row by row is eight times as fast as summing along the axis.
            row_counts[rows] = [np.count_nonzero(row) for row in mask]
            if column_bounds is not None:
                ones = compare(strip, column_bounds).view(np.uint8)
                column_counts += ones.sum(axis=0, dtype=np.uint8)
    return by_row, by_column


def rows_in_cache(scores: np.ndarray) -> int:
    """Return how many rows of scores ``[n, m]`` fit into the cache, at least one."""
    n_columns = scores.shape[1]
    row_bytes = max(1, n_columns * scores.itemsize)
    return max(1, _CACHE_BYTES // row_bytes)

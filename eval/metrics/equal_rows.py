"""Equal rows of a matrix, found by comparing the rows themselves and not their products."""

from __future__ import annotations

import numpy as np


def first_equal_row(rows: np.ndarray) -> np.ndarray:
    """Find the first row that equals each row.

    Args:
        rows: float ``[n, d]``, finite; 0.0 and -0.0 are equal.

    Returns:
        int64 ``[n]``: the position of the first equal row, which may be the row itself.
    """
    first_equal = np.arange(len(rows))
    if not rows.size:
        return np.zeros_like(first_equal)

    # Sorting whole rows is slow. Equal rows agree in the first column, which in most matrices
    # already tells all rows apart.
    _, value_numbers, counts = np.unique(
        rows[:, 0],
        return_inverse=True,
        return_counts=True,
    )
    suspects = np.flatnonzero(counts[value_numbers] > 1)
    if not len(suspects):
        return first_equal

    # View each row as one value, compared byte by byte; adding zero turns -0.0 into 0.0.
    zero = rows.dtype.type(0)
    suspect_rows = np.ascontiguousarray(rows[suspects] + zero)
    row_bytes = suspect_rows[0].nbytes
    row_type = np.dtype((np.void, row_bytes))
    suspect_bytes = suspect_rows.view(row_type).ravel()
    _, leaders, groups = np.unique(
        suspect_bytes,
        return_index=True,
        return_inverse=True,
    )
    first_equal[suspects] = suspects[leaders[groups]]
    return first_equal


def copied_columns(first_equal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the candidates that equal an earlier one, each with the first of its equals.

    Args:
        first_equal: int64 ``[m]``: the first candidate that equals each candidate
            (:func:`first_equal_row`).

    Returns:
        Copies and originals, int64 ``[k]`` each: columns of a score matrix. Equal candidates share
        their scores once ``scores[:, copies] = scores[:, originals]``.
    """
    copies = np.flatnonzero(first_equal != np.arange(len(first_equal)))
    originals = first_equal[copies]
    return copies, originals

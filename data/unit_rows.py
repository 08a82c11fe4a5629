"""L2 normalisation of rows of any type and size: lengths are taken in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

# Converted to float64 at once.
_BLOCK_ROWS = 4096
# A float of no more bytes has squares that float64 holds.
_SAFE_BYTES = 4


def unit_rows(rows: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    """L2-normalise rows.

    float16 holds no length above 65,504, float32 no square above 3e38 and none below 1e-45: lengths
    in these types would turn such rows into zeros or into rows of another length.

    Args:
        rows: ``[n, d]`` of any float or integer type.
        dtype: Of the result.

    Returns:
        ``[n, d]``; rows of zeros stay zeros, rows that are not finite become NaN.
    """
    normalized = np.empty(rows.shape, dtype)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        scaled_rows = _scaled(rows[block])
        lengths = np.linalg.norm(scaled_rows, axis=1, keepdims=True)
        divisors = np.where(lengths == 0, 1.0, lengths)
        with np.errstate(invalid="ignore"):  # infinity by infinity
            normalized[block] = scaled_rows / divisors
    return normalized


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Convert rows to float64, times a power of two where it would not hold their squares."""
    wide_rows = np.asarray(rows, np.float64)
    if rows.dtype.itemsize <= _SAFE_BYTES or not wide_rows.size:
        return wide_rows
    # A power of two leaves every digit as it is, and the direction with it.
    largest = np.abs(wide_rows).max(axis=1, keepdims=True)
    _, exponents = np.frexp(largest)
    return np.ldexp(wide_rows, -exponents)

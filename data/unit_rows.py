"""L2 normalisation of rows of any dtype and magnitude, computed in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

# Rows that are converted to float64 at a time.
_BLOCK_ROWS = 4096
# float64 holds the square of any float of at most this many bytes.
_SAFE_BYTES = 4


def unit_rows(rows: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    """L2-normalise rows.

    Lengths are computed in float64: float16 holds no length above 65,504, and float32 no square
    above 3e38 or below 1e-45, so in their own dtype some rows would become zeros or not get length
    one.

    Args:
        rows: ``[n, d]`` of any float or integer dtype.
        dtype: Dtype of the result.

    Returns:
        ``[n, d]`` of ``dtype``; rows of zeros stay zeros, and rows with infinity become NaN there.
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
    """Convert rows to float64, scaled by a power of two if their squares might overflow."""
    wide_rows = np.asarray(rows, np.float64)
    if rows.dtype.itemsize <= _SAFE_BYTES or not wide_rows.size:
        return wide_rows
    # Scaling by a power of two is exact, so the direction does not change.
    largest = np.abs(wide_rows).max(axis=1, keepdims=True)
    _, exponents = np.frexp(largest)
    return np.ldexp(wide_rows, -exponents)

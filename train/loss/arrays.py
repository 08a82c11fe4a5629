"""Teacher rows, similarities and ids that numpy gives, as tensors where the features are."""

from __future__ import annotations

import numpy as np
import torch

Rows = torch.Tensor | np.ndarray

_FLOATS = (np.float16, np.float32, np.float64)


def as_rows(
    rows: Rows,
    device: torch.device,
    name: str,
    shape: tuple[int | None, ...] | None = None,
) -> torch.Tensor:
    """Take floating-point rows as a tensor; a tensor stays as it is.

    Args:
        rows: A tensor, or an array of float16, float32 or float64: writable or not, of any strides
            and byte order.
        device: Where an array goes.
        name: What it is called in messages.
        shape: What an array must have, ``None`` for any length: told before any of it is read.

    Raises:
        ValueError: If an array is of another dtype or shape.
    """
    if isinstance(rows, torch.Tensor):
        return rows
    _check_shape(rows, name, shape)
    if rows.dtype.type not in _FLOATS:
        raise ValueError(f"{name} must be float16, float32 or float64, got {rows.dtype}")
    return _copied(rows, rows.dtype.newbyteorder("=")).to(device)


def as_ids(
    ids: Rows,
    device: torch.device,
    name: str,
    shape: tuple[int | None, ...] | None = None,
) -> torch.Tensor:
    """Take ids as an int64 tensor; a tensor stays as it is.

    Args:
        ids: A tensor, or an array of integers.
        device: Where an array goes.
        name: What it is called in messages.
        shape: What an array must have, ``None`` for any length.

    Raises:
        ValueError: If an array is not of integers, or of another shape.
    """
    if isinstance(ids, torch.Tensor):
        return ids
    _check_shape(ids, name, shape)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {ids.dtype}")
    return _copied(ids, np.dtype(np.int64)).to(device)


def _check_shape(array: np.ndarray, name: str, shape: tuple[int | None, ...] | None) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} must be a tensor or a numpy array, got {type(array).__name__}")
    if shape is None:
        return
    fits = len(array.shape) == len(shape)
    if fits:
        pairs = zip(shape, array.shape, strict=True)
        fits = all(wanted in (None, length) for wanted, length in pairs)
    if not fits:
        expected = ["any" if wanted is None else wanted for wanted in shape]
        raise ValueError(
            f"{name} must be {str(expected).replace(repr('any'), 'any')}, got {list(array.shape)}",
        )


def _copied(array: np.ndarray, dtype: np.dtype) -> torch.Tensor:
    """Make a tensor of an array; a copy where torch cannot use its memory, or must not write."""
    return torch.from_numpy(
        np.array(array, dtype, order="C", copy=None if array.flags.writeable else True),
    )

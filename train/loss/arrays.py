"""Teacher rows, similarities and ids from numpy arrays, as tensors on the features' device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cusa.data.errors import EmbeddingsError

Rows = Tensor | np.ndarray
Shape = tuple[int | None, ...]  # None: any length

_NAMED_ROWS = 10  # in an error, at most
_FLOAT_TYPES = (np.float16, np.float32, np.float64)


def as_rows(
    rows: Rows,
    device: torch.device,
    name: str,
    shape: Shape,
) -> Tensor:
    """Convert floating-point rows to a tensor; a tensor is returned as it is.

    Args:
        rows: A tensor, or an array of float16, float32 or float64, writable or not, with any
            strides and byte order.
        device: Where to put an array.
        name: What error messages call the rows.
        shape: The shape that an array must have; checked before any of it is read.

    Raises:
        EmbeddingsError: If an array has another dtype or shape; ``name`` is as given.
    """
    if isinstance(rows, Tensor):
        return rows
    _check_shape(rows, name, shape)
    if rows.dtype.type not in _FLOAT_TYPES:
        raise EmbeddingsError(
            f"{name} must be float16, float32 or float64, got {rows.dtype}", name=name
        )
    return _as_tensor(rows, rows.dtype.newbyteorder("=")).to(device)


def as_ids(
    ids: Rows,
    device: torch.device,
    name: str,
    shape: Shape,
) -> Tensor:
    """Convert ids to an int64 tensor; a tensor is returned as it is.

    Args:
        ids: A tensor or an array of integers.
        device: Where to put an array.
        name: What error messages call the ids.
        shape: The shape that an array must have.

    Raises:
        EmbeddingsError: If these are no integers, or an array has another shape; ``name`` is as
            given.
    """
    if isinstance(ids, Tensor):
        # Rounded to half precision, ids of different images would be equal.
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise EmbeddingsError(f"{name} must be integers, got {ids.dtype}", name=name)
        return ids
    _check_shape(ids, name, shape)
    if ids.dtype.kind not in "iu":
        raise EmbeddingsError(f"{name} must be integers, got {ids.dtype}", name=name)
    return _as_tensor(ids, np.dtype(np.int64)).to(device)


def as_mask(
    mask: Rows,
    device: torch.device,
    name: str,
    shape: Shape,
) -> Tensor:
    """Convert a mask to a bool tensor; a tensor is returned as it is.

    Args:
        mask: A tensor, or an array of bool.
        device: Where to put an array.
        name: What error messages call the mask.
        shape: The shape that an array must have.

    Raises:
        EmbeddingsError: If an array is not bool or has another shape; ``name`` is as given.
    """
    if isinstance(mask, Tensor):
        return mask
    _check_shape(mask, name, shape)
    if mask.dtype != np.bool_:
        raise EmbeddingsError(f"{name} must be bool, got {mask.dtype}", name=name)
    return _as_tensor(mask, mask.dtype).to(device)


def _check_shape(
    array: np.ndarray,
    name: str,
    shape: Shape,
) -> None:
    if not isinstance(array, np.ndarray):
        raise EmbeddingsError(
            f"{name} must be a tensor or a numpy array, got {type(array).__name__}", name=name
        )
    # Check before reading any of it: a memory map may be of a large, wrong file.
    lengths = zip(shape, array.shape, strict=False)
    fits = all(expected in (None, length) for expected, length in lengths)
    if len(array.shape) != len(shape) or not fits:
        expected_shape = str(list(shape)).replace("None", "any")
        raise EmbeddingsError(
            f"{name} must be {expected_shape}, got {list(array.shape)}", name=name
        )


def rows_in_words(rows: Sequence[int]) -> str:
    """List the first few rows for a message: ``"rows 3, 4"``."""
    listed = ", ".join(map(str, rows[:_NAMED_ROWS]))
    if len(rows) > _NAMED_ROWS:
        return f"rows {listed}, ..."
    return f"rows {listed}"


def _as_tensor(
    array: np.ndarray,
    dtype: np.dtype,
) -> Tensor:
    """Make a tensor of an array: a copy if torch cannot use its memory or must not write to it."""
    copy = None if array.flags.writeable else True  # None: copy only to change dtype or order
    return torch.from_numpy(np.array(array, dtype, order="C", copy=copy))

"""Rows of many memory-mapped arrays, gathered by a single indexing operation."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

# A block number far outside the window, so that numpy's bounds check raises an IndexError.
_UNMAPPED = 1 << 62
# Larger blocks are copied more slowly. Our writer aligns rows to a multiple of it.
_MAX_BLOCK_BYTES = 512


class RowWindow:
    """An array over the maps of all shards, so that one indexing operation gathers any rows.

    The memory from the lowest map to the end of the highest is viewed as an array of blocks, whose
    size divides the length of a row and the distances between the maps. Only blocks within maps are
    ever read. docs/decisions.md compares the time with that of simpler methods.

    Args:
        bounds: int64 ``[n_shards + 1]``: first row of each shard, then the number of rows.
        dim: Number of columns.
        dtype: Dtype of the rows.
        load: Maps a shard by number: ``[rows of the shard, dim]``, C-contiguous.
    """

    def __init__(
        self, bounds: np.ndarray, dim: int, dtype: np.dtype, load: Callable[[int], np.ndarray]
    ) -> None:
        self._bounds = bounds
        self._n_rows = int(bounds[-1])
        self._dim = dim
        self._dtype = dtype
        self._load = load
        self._lock = threading.Lock()
        self._maps: dict[int, np.ndarray] = {}  # keeps the memory mapped
        # If all shards but the last have the same length, dividing by it is faster than a search.
        lengths = np.diff(bounds)
        self._has_equal_shards = (lengths[:-1] == lengths[0]).all() and lengths[-1] <= lengths[0]
        self._shard_rows = np.array(lengths[0])
        # The layout: for each shard, the block at which row 0 would begin if the rows before the
        # shard preceded it in memory; the blocks; the number of blocks per row (as an array, which
        # numpy would otherwise make each time); and the numbers of a row's blocks. The tuple is
        # replaced as a whole, so that threads see either the old layout or the new one.
        origins = np.full(len(lengths), _UNMAPPED)
        self._layout = (origins, np.empty(0, np.void), np.array(1), np.arange(1))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by number, int ``[n]``, in the given order: ``[n, dim]``.

        Raises:
            IndexError: If a row is out of range, or not an integer.
            StoreError: If a shard cannot be mapped.
        """
        if rows.dtype != np.int64:
            rows = row_numbers(rows)
        if not len(rows):
            return np.empty((0, self._dim), self._dtype)
        # Negative numbers are huge when read as unsigned ones. argmax takes a third of max's time.
        unsigned = rows.view(np.uint64)
        if unsigned.item(unsigned.argmax()) >= self._n_rows:
            raise IndexError(
                f"rows must lie in [0, {self._n_rows}); got {rows.min()} to {rows.max()}"
            )

        if self._has_equal_shards:
            shards = rows // self._shard_rows
        else:
            shards = self._bounds.searchsorted(rows, "right") - 1
        origins, blocks, blocks_per_row, row_blocks = self._layout
        first_blocks = origins.take(shards)
        first_blocks += rows * blocks_per_row
        try:
            return blocks.take(np.add.outer(first_blocks, row_blocks)).view(self._dtype)
        except IndexError:
            self._extend(np.unique(shards).tolist())
            return self.gather(rows)

    def _extend(self, shards: list[int]) -> None:
        """Map more shards, and lay out the blocks again; other threads may be gathering."""
        with self._lock:
            for number in shards:
                if number not in self._maps:
                    self._maps[number] = self._load(number)

            addresses = np.array([rows.ctypes.data for rows in self._maps.values()])
            ends = addresses + [rows.nbytes for rows in self._maps.values()]
            lowest = addresses.min()
            row_bytes = self._dim * self._dtype.itemsize
            distances = (addresses - lowest).tolist()
            block_bytes = math.gcd(_MAX_BLOCK_BYTES, row_bytes, *distances)
            memory = (ctypes.c_char * int(ends.max() - lowest)).from_address(int(lowest))
            blocks = np.frombuffer(memoryview(memory), f"V{block_bytes}")

            blocks_per_row = np.array(row_bytes // block_bytes)
            numbers = list(self._maps)
            origins = np.full(len(self._bounds) - 1, _UNMAPPED)
            origins[numbers] = (addresses - lowest) // block_bytes
            origins[numbers] -= self._bounds[numbers] * blocks_per_row
            row_blocks = np.arange(int(blocks_per_row))
            self._layout = (origins, blocks, blocks_per_row, row_blocks)


RowIndex = int | slice | np.ndarray | Sequence[int]
Row = TypeVar("Row")


def indexed_rows(index: RowIndex, n_rows: int) -> np.ndarray:
    """Convert an index into an array of ``n_rows`` rows to row numbers.

    Args:
        index: A row, a slice, int ``[n]``, or bool ``[n_rows]``; negative rows count from the end.
        n_rows: Number of rows of the array.

    Returns:
        int64, each in ``[0, n_rows)``: ``[n]``, or 0-dimensional for a single row.

    Raises:
        IndexError: If a row is out of range, or ``index`` is something else.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(n_rows))

    rows = np.asarray(index)
    if isinstance(index, tuple) or rows.ndim > 1:
        raise IndexError("index rows by an int, a slice, or an array of one dimension")
    if rows.dtype == bool:
        if rows.shape != (n_rows,):
            raise IndexError(f"a mask must have shape ({n_rows},); got {rows.shape}")
        rows = np.flatnonzero(rows)

    numbers = row_numbers(rows)
    is_outside = (numbers < -n_rows) | (numbers >= n_rows)
    if is_outside.any():
        first = rows[is_outside][0]
        raise IndexError(f"rows must lie in [-{n_rows}, {n_rows}); got {first}")
    return np.where(numbers < 0, numbers + n_rows, numbers)


def read_rows(read_row: Callable[[int], Row], index: RowIndex, n_rows: int) -> Row | list[Row]:
    """Read the row at an index, or the rows.

    Args:
        read_row: Reads a row by number.
        index: An index, as for :func:`indexed_rows`.
        n_rows: Number of rows.

    Raises:
        IndexError: As :func:`indexed_rows` raises it.
    """
    # A shortcut for training, which reads rows one by one: an array would take ten times as long.
    if isinstance(index, int | np.integer):
        return read_row(range(n_rows)[index])
    rows = indexed_rows(index, n_rows)
    if not rows.ndim:
        return read_row(int(rows))
    return list(map(read_row, rows.tolist()))


def row_numbers(rows: np.ndarray) -> np.ndarray:
    """Convert integers of any kind to int64.

    Raises:
        IndexError: If they are not integers.
    """
    if rows.size and rows.dtype.kind not in "iu":
        raise IndexError(f"rows must be integers; got {rows.dtype}")
    return rows.astype(np.int64)


def row_vector(rows: ArrayLike) -> np.ndarray:
    """Return rows as int64 ``[n]``; ids, masks and shares must not become rows in silence.

    Raises:
        IndexError: If they are no whole numbers in one dimension.
    """
    numbers = np.asarray(rows)
    if numbers.ndim != 1:
        raise IndexError(f"rows are int [n]; got shape {numbers.shape}")
    return row_numbers(numbers)

"""Rows of many memory-mapped arrays, gathered by one indexing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np


class RowWindow:
    """One array over the shards' maps, wherever they lie: one indexing gathers rows of all of them.

    Element i of the array is the row that would begin i elements after the lowest map; only indices
    that fall on rows are ever used. A loop over the shards that a batch of 128 rows touches takes
    seven times as long.

    Args:
        bounds: int64 ``[n_shards + 1]``: first row of each shard, then the number of rows.
        dim: Columns.
        dtype: Of the rows.
        load: Maps a shard by number: ``[rows of the shard, dim]``, C-contiguous.
    """

    _UNMAPPED = 1 << 62  # far outside of the array: numpy's own check of indices finds it

    __slots__ = ("_bounds", "_dtype", "_fast", "_length", "_load", "_lock", "_maps")

    def __init__(
        self, bounds: np.ndarray, dim: int, dtype: np.dtype, load: Callable[[int], np.ndarray]
    ) -> None:
        self._bounds, self._dtype, self._load, self._lock = bounds, dtype, load, threading.Lock()
        lengths = np.diff(bounds)
        # Dividing is faster than searching, and all shards but the last are of one length unless
        # somebody made them so.
        self._length = (
            int(lengths[0])
            if (lengths[:-1] == lengths[0]).all() and lengths[-1] <= lengths[0]
            else None
        )
        self._maps: dict[int, np.ndarray] = {}  # keeps the memory mapped
        origins = np.full(
            len(lengths), self._UNMAPPED, np.int64
        )  # where row 0 would be, if a shard began there
        view = np.empty((0, 1), np.dtype((np.void, dim * dtype.itemsize)))
        # What gathering needs, in one place: the rows that it copies drive all else out of the
        # processor's cache, and looking names up would take a tenth of the time. Numbers are arrays
        # already.
        self._fast = (
            int(bounds[-1]),
            np.array(self._length or 1),
            np.array(dim),
            origins,
            view,
            dtype,
        )

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, int ``[n]``, in the order asked for: ``[n, dim]``.

        Raises:
            IndexError: If a row is out of range, or no integer.
        """
        n_rows, length, dim, origins, view, dtype = self._fast
        if rows.dtype != np.int64:
            rows = row_numbers(rows)
        if not len(rows):
            return np.empty((0, int(dim)), dtype)
        if np.maximum.reduce(rows.view(np.uint64)) >= n_rows:  # negative ones are huge there
            raise IndexError(f"rows must lie in [0, {n_rows}); got {rows.min()} to {rows.max()}")
        shards = rows // length if self._length else self._bounds.searchsorted(rows, "right") - 1
        places = origins.take(shards)
        places += rows * dim
        try:
            return view[places].view(dtype)
        except IndexError:
            self._extend(np.unique(shards[origins[shards] == self._UNMAPPED]).tolist())
            return self.gather(rows)

    def _extend(self, shards: list[int]) -> None:
        """Map more shards, and lay the array over all; other threads may be gathering."""
        with self._lock:
            for number in shards:
                if number not in self._maps:
                    self._maps[number] = self._load(number)
            self._fast = self._laid_out()

    def _laid_out(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.dtype]:
        n_rows, length, dim, origins, view, dtype = self._fast
        origins = (
            origins.copy()
        )  # origins and array belong together: a reader has the old ones, or the new ones
        numbers = np.fromiter(self._maps, np.int64)
        addresses = np.fromiter((m.ctypes.data for m in self._maps.values()), np.int64)
        low, size = int(addresses.min()), dtype.itemsize
        origins[numbers] = (addresses - low) // size - self._bounds[numbers] * dim
        end = max(
            a + m.nbytes for a, m in zip(addresses.tolist(), self._maps.values(), strict=True)
        )
        interface = {
            "version": 3,
            "data": (low, True),
            "shape": (
                (end - low - view.itemsize) // size + 1,
                1,
            ),  # up to the last row of the highest map
            "strides": (size, view.itemsize),
            "typestr": view.dtype.str,
        }
        view = np.asarray(type("Memory", (), {"__array_interface__": interface})())
        return n_rows, length, dim, origins, view, dtype


RowIndex = int | slice | np.ndarray | Sequence[int]


def indexed_rows(index: RowIndex, n_rows: int) -> np.ndarray:
    """Row numbers that an index of an array of so many rows stands for.

    Args:
        index: A row, a slice, int ``[n]``, or bool ``[n_rows]``; negative rows count from the end.
        n_rows: How many rows there are.

    Returns:
        int64, each in ``[0, n_rows)``: ``[n]``, or of no dimension for a single row.

    Raises:
        IndexError: If a row is out of range, or ``index`` is something else.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(n_rows))
    given = np.asarray(index)
    if isinstance(index, tuple) or given.ndim > 1:
        raise IndexError("rows are asked for by an int, a slice, or an array of one dimension")
    if given.dtype == bool:
        if given.shape != (n_rows,):
            raise IndexError(f"a mask of {n_rows} rows has as many; got shape {given.shape}")
        given = np.flatnonzero(given)
    numbers = row_numbers(given)
    is_outside = (numbers < -n_rows) | (numbers >= n_rows)
    if is_outside.any():
        first = given[is_outside][0]
        raise IndexError(f"rows must lie in [-{n_rows}, {n_rows}); got {first}")
    return np.where(numbers < 0, numbers + n_rows, numbers)


def row_numbers(rows: np.ndarray) -> np.ndarray:
    """int64, of integers of another kind."""
    if rows.size and rows.dtype.kind not in "iu":
        raise IndexError(f"rows must be integers; got {rows.dtype}")
    return rows.astype(np.int64)

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

    # Far outside of the array: numpy's own check of indices finds it.
    _UNMAPPED = 1 << 62

    __slots__ = ("_bounds", "_layout", "_load", "_lock", "_maps", "_shard_rows")

    def __init__(
        self,
        bounds: np.ndarray,
        dim: int,
        dtype: np.dtype,
        load: Callable[[int], np.ndarray],
    ) -> None:
        self._bounds = bounds
        self._load = load
        self._lock = threading.Lock()
        self._maps: dict[int, np.ndarray] = {}  # keeps the memory mapped
        self._shard_rows = _common_length(np.diff(bounds))

        n_shards = len(bounds) - 1
        # Where row 0 would be, if a shard began there.
        origins = np.full(n_shards, self._UNMAPPED, np.int64)
        window = np.empty((0, 1), np.dtype((np.void, dim * dtype.itemsize)))
        # What gathering needs, in one place: the rows that it copies drive all else out of the
        # processor's cache, and looking names up would take a tenth of the time. Numbers are arrays
        # already.
        self._layout = (
            int(bounds[-1]),
            np.array(self._shard_rows or 1),
            np.array(dim),
            origins,
            window,
            dtype,
        )

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by number, int ``[n]``, in the order asked for: ``[n, dim]``.

        Raises:
            IndexError: If a row is out of range, or no integer.
        """
        n_rows, shard_rows, dim, origins, window, dtype = self._layout
        if rows.dtype != np.int64:
            rows = row_numbers(rows)
        if not len(rows):
            return np.empty((0, int(dim)), dtype)
        # As unsigned numbers, negative ones are huge.
        if np.maximum.reduce(rows.view(np.uint64)) >= n_rows:
            raise IndexError(f"rows must lie in [0, {n_rows}); got {rows.min()} to {rows.max()}")

        if self._shard_rows:
            shards = rows // shard_rows
        else:
            shards = self._bounds.searchsorted(rows, "right") - 1
        elements = origins.take(shards)
        elements += rows * dim
        try:
            return window[elements].view(dtype)
        except IndexError:
            is_unmapped = origins[shards] == self._UNMAPPED
            self._extend(np.unique(shards[is_unmapped]).tolist())
            return self.gather(rows)

    def _extend(self, shards: list[int]) -> None:
        """Map more shards, and lay the array over all; other threads may be gathering."""
        with self._lock:
            for number in shards:
                if number not in self._maps:
                    self._maps[number] = self._load(number)
            self._layout = self._extended_layout()

    def _extended_layout(
        self,
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.dtype]:
        """Return the layout with an array over all maps."""
        n_rows, shard_rows, dim, old_origins, old_window, dtype = self._layout
        numbers = np.fromiter(self._maps, np.int64)
        addresses = np.fromiter((rows.ctypes.data for rows in self._maps.values()), np.int64)
        lengths = np.fromiter((rows.nbytes for rows in self._maps.values()), np.int64)
        lowest = int(addresses.min())
        end = int((addresses + lengths).max())

        # Origins and array belong together: a reader has the old ones of both, or the new ones.
        origins = old_origins.copy()
        first_elements = (addresses - lowest) // dtype.itemsize
        origins[numbers] = first_elements - self._bounds[numbers] * dim

        row_bytes = old_window.itemsize
        # Up to the last row of the highest map.
        n_elements = (end - lowest - row_bytes) // dtype.itemsize + 1
        interface = {
            "version": 3,
            "data": (lowest, True),
            "shape": (n_elements, 1),
            "strides": (dtype.itemsize, row_bytes),
            "typestr": old_window.dtype.str,
        }
        memory = type("Memory", (), {"__array_interface__": interface})()
        return n_rows, shard_rows, dim, origins, np.asarray(memory), dtype


def _common_length(lengths: np.ndarray) -> int | None:
    """Return the length of all shards but the last, which may be shorter; ``None`` if they differ.

    Dividing by it is faster than searching, and shards are of one length unless somebody made them
    otherwise.
    """
    are_equal = (lengths[:-1] == lengths[0]).all()
    if are_equal and lengths[-1] <= lengths[0]:
        return int(lengths[0])
    return None


RowIndex = int | slice | np.ndarray | Sequence[int]


def indexed_rows(index: RowIndex, n_rows: int) -> np.ndarray:
    """Return the row numbers that an index stands for, in an array of ``n_rows`` rows.

    Args:
        index: A row, a slice, int ``[n]``, or bool ``[n_rows]``; negative rows count from the end.
        n_rows: Number of rows of the array.

    Returns:
        int64, each in ``[0, n_rows)``: ``[n]``, or of no dimension for a single row.

    Raises:
        IndexError: If a row is out of range, or ``index`` is something else.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(n_rows))

    rows = np.asarray(index)
    if isinstance(index, tuple) or rows.ndim > 1:
        raise IndexError("rows are asked for by an int, a slice, or an array of one dimension")
    if rows.dtype == bool:
        if rows.shape != (n_rows,):
            raise IndexError(f"a mask of {n_rows} rows has as many; got shape {rows.shape}")
        rows = np.flatnonzero(rows)

    numbers = row_numbers(rows)
    is_outside = (numbers < -n_rows) | (numbers >= n_rows)
    if is_outside.any():
        first = rows[is_outside][0]
        raise IndexError(f"rows must lie in [-{n_rows}, {n_rows}); got {first}")
    return np.where(numbers < 0, numbers + n_rows, numbers)


def row_numbers(rows: np.ndarray) -> np.ndarray:
    """Convert integers of any kind to int64.

    Raises:
        IndexError: If they are no integers.
    """
    if rows.size and rows.dtype.kind not in "iu":
        raise IndexError(f"rows must be integers; got {rows.dtype}")
    return rows.astype(np.int64)

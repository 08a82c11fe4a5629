"""A teacher's rows for a split, memory-mapped shard by shard, with no HDF5 handle held."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import overload

import h5py
import numpy as np
from numpy.typing import DTypeLike

from cusa.data.errors import StoreError
from cusa.data.store.checksum import SHARD_FORMAT, require_seal
from cusa.data.store.hdf5 import (
    ArrayLocation,
    array_location,
    child_group,
    read_array,
)
from cusa.data.store.index_checks import check_lengths, check_skipped, read_bounds
from cusa.data.store.mapped_file import MappedFile
from cusa.data.store.mapped_split import Split, Strings, without_arrays
from cusa.data.store.row_window import RowIndex, RowWindow, indexed_rows
from cusa.data.store.schema import TeacherSettings, shard_path
from cusa.data.store.shards import DIGEST_BYTES, read_picture_digests, require_intact

_HASHING_THREADS = 4


class Embeddings:
    """The rows of one teacher for one split: ``[n_rows, dim]``, gathered by row number.

    ``store[teacher, split]`` returns them.

    Opening takes the same time for any number of rows; each shard is checked and mapped when a row
    of it is first requested. :meth:`require_shards` checks all of them at once.

    Attributes:
        teacher: The teacher's name in the store.
        split: The split's name.
        settings: The teacher's settings.
        shape: ``(n_rows, dim)``.
    """

    def __init__(
        self,
        teacher: str,
        settings: TeacherSettings,
        split: Split,
        index: MappedFile,
        split_group: h5py.Group,
    ) -> None:
        self.teacher = teacher
        self.split = split.name
        self.settings = settings
        n_rows = split.n_captions
        if settings.modality == "image":
            n_rows = split.n_images
        self.shape = (n_rows, settings.dim)

        self._index = index
        listing = child_group(split_group, "shards")
        bounds = read_bounds(listing)
        self._bounds = self._adjacent_bounds(bounds)
        self._offsets = read_array(listing, "offsets", "<i8")
        self._files = Strings(index, listing, "files")
        self._seals = Strings(index, listing, "sha256")
        lengths = [len(bounds), len(self._offsets), len(self._files), len(self._seals)]
        check_lengths(lengths, index.path, listing.name)
        self._skipped = array_location(split_group, "skipped", "<i8")

    def _adjacent_bounds(self, bounds: np.ndarray) -> np.ndarray:
        """Return the first row of each shard, then the number of rows; refuse gaps."""
        n_rows = len(self)
        # Each shard begins where the one before it stops, and the last stops at the end.
        starts = np.append(bounds[:, 0], n_rows)
        previous_stops = np.append(0, bounds[:, 1])
        is_gap = starts != previous_stops
        if is_gap.any():
            row = int(np.minimum(starts, previous_stops)[is_gap][0])
            raise StoreError(
                f"{self._index.path}: the shards of teacher {self.teacher!r} do not hold all "
                f"{n_rows} rows of split {self.split!r} (row {row} on); join parts with "
                "cusa-store merge, or let the cusa-precompute command finish",
                path=self._index.path,
                location=f"row {row}",
                name=self.teacher,
            )
        return starts

    @cached_property
    def skipped(self) -> np.ndarray:
        """Return the rows without an embedding, which hold NaN: int64 ``[n]``, ascending.

        Raises:
            StoreError: If they do not ascend within the split.
        """
        rows = self._index.array(self._skipped)
        split_name = self._skipped.name.removesuffix("/skipped")
        check_skipped(rows, len(self), self._index.path, split_name)
        return rows

    @cached_property
    def _window(self) -> RowWindow:
        return RowWindow(self._bounds, self.shape[1], self.dtype, self._map)

    @cached_property
    def _exceeds_memory(self) -> bool:
        """Return whether the rows do not all fit into memory.

        If so, reading ahead of random rows would only evict others from the page cache.
        """
        n_bytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        return n_bytes > memory / 2

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def n_shards(self) -> int:
        """Return the number of shard files."""
        return len(self._files)

    @property
    def dtype(self) -> np.dtype:
        """Return float16 or float32."""
        return np.dtype(self.settings.dtype)

    def shard_path(self, shard_number: int) -> Path:
        """Return the path of a shard, by its ``shard_number`` from 0."""
        return shard_path(self._index.path.parent, self._files[shard_number])

    def require_shards(self) -> None:
        """Check that every shard exists and is the one that the index names.

        This reads 512 bytes of each.

        Raises:
            StoreError: If a shard is missing or is another one; names it.
        """
        for number in range(self.n_shards):
            # HDF5 would silently read fill values in place of a missing shard.
            require_seal(self.shard_path(number), SHARD_FORMAT, self._seals[number])

    def verify_shards(self) -> None:
        """Read every byte of every shard and compare it with the checksums.

        Raises:
            StoreError: If a shard is missing, damaged, or another one; names it.
        """
        self.require_shards()
        paths = [self.shard_path(number) for number in range(self.n_shards)]
        with ThreadPoolExecutor(_HASHING_THREADS) as threads:
            list(threads.map(require_intact, paths))

    def picture_digests(self) -> np.ndarray:
        """Read the sha256 of each row's picture file: uint8 ``[n_rows, 32]``, zeros where unknown.

        Raises:
            StoreError: If a shard cannot be read.
        """
        digests = np.zeros((len(self), DIGEST_BYTES), np.uint8)
        for number in range(self.n_shards):
            start, stop = self._bounds[number : number + 2].tolist()
            # A shard without digests, or with another number of them, leaves zeros.
            recorded = read_picture_digests(self.shard_path(number), self._seals[number])
            if recorded is not None and len(recorded) == stop - start:
                digests[start:stop] = recorded
        return digests

    def gather(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return rows by number, in the given order.

        Args:
            rows: int ``[n]``, each in ``[0, n_rows)``.

        Returns:
            ``[n, dim]`` in the stored dtype, L2-normalised if ``settings.normalized``; NaN for
            skipped rows.

        Raises:
            IndexError: If a row is out of range or not an integer, or ``rows`` does not have one
                dimension.
            StoreError: If a shard is missing, truncated, or not the one that the index names.
        """
        row_numbers = np.asarray(rows)
        if row_numbers.ndim != 1:
            raise IndexError(f"rows are gathered by int [n]; got shape {row_numbers.shape}")
        return self._window.gather(row_numbers)

    @overload
    def __getitem__(self, rows: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> np.ndarray: ...
    def __getitem__(self, rows: RowIndex) -> np.ndarray:
        """Return a copy of rows, indexed as in an array: ``[dim]`` or ``[n, dim]``.

        Args:
            rows: A row, a slice, int ``[n]``, or bool ``[n_rows]``; negative rows count from the
                end. For batches, :meth:`gather` is faster.

        Raises:
            IndexError: If a row is out of range, or ``rows`` is something else.
            StoreError: As :meth:`gather` raises it.
        """
        row_numbers = indexed_rows(rows, len(self))
        if row_numbers.ndim:
            return self.gather(row_numbers)
        return self.gather(row_numbers[None])[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows in memory: ``[n_rows, dim]``."""
        # numpy asks for an array without copying.
        if copy is False:
            raise ValueError("the rows are in files, so an array of them is always a copy")
        rows = self.gather(np.arange(len(self)))
        if dtype is None:
            return rows
        return rows.astype(dtype, copy=False)

    def __repr__(self) -> str:
        n_rows, dim = self.shape
        return (
            f"<Embeddings of {self.teacher!r}, split {self.split!r}: "
            f"{n_rows:,} x {dim} {self.dtype}>"
        )

    def __getstate__(self) -> dict[str, object]:
        state = without_arrays(self)
        # Unlike the maps, these arrays cannot be recreated in the other process.
        state["_bounds"] = self._bounds
        state["_offsets"] = self._offsets
        state.pop("_window", None)
        return state

    def _map(self, shard_number: int) -> np.ndarray:
        """Map the rows of a shard."""
        path = self.shard_path(shard_number)
        offset = int(self._offsets[shard_number])
        # The window over all maps is laid out in elements, not in bytes.
        if offset % self.dtype.itemsize:
            raise StoreError(
                f"{path}: its rows are not aligned to their dtype; see docs/FORMAT.md", path=path
            )
        n_rows = int(self._bounds[shard_number + 1] - self._bounds[shard_number])
        file = MappedFile(
            path,
            SHARD_FORMAT,
            self._seals[shard_number],
            reads_ahead=not self._exceeds_memory,
        )
        location = ArrayLocation(
            name="rows",
            offset=offset,
            shape=(n_rows, self.shape[1]),
            dtype=self.dtype.str,
        )
        return file.array(location)

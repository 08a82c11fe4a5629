"""Columns of texts, mapped from the index on first use, and pickling without the maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import overload

import h5py
import numpy as np

from cusa.data.store.hdf5 import array_location, child_group, refuse
from cusa.data.store.mapped_file import MappedFile
from cusa.data.store.row_window import RowIndex, indexed_rows


class Strings(Sequence[str]):
    """A column of texts, which takes the same time to open for any number of rows."""

    def __init__(
        self,
        index: MappedFile,
        parent: h5py.Group,
        name: str,
    ) -> None:
        group = child_group(parent, name)
        self._index = index
        self._bytes = array_location(group, "bytes", "|u1")
        self._offsets = array_location(group, "offsets", "<i8")
        if self._offsets.shape[0] < 1:
            refuse(index.path, self._offsets.name, "it is empty")

    def __len__(self) -> int:
        return self._offsets.shape[0] - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice | np.ndarray | Sequence[int]) -> list[str]: ...
    def __getitem__(self, row: RowIndex) -> str | list[str]:
        """Return the text of a row, or the texts of a slice, int ``[n]``, or bool ``[n_rows]``.

        Raises:
            IndexError: If a row is out of range, or ``row`` is something else.
            StoreError: If a text is damaged.
        """
        if isinstance(row, int | np.integer):
            return self._text(range(len(self))[row])
        rows = indexed_rows(row, len(self))
        return self._texts(rows) if rows.ndim else self._text(int(rows))

    def _texts(self, rows: np.ndarray) -> list[str]:
        if not len(rows):
            return []
        starts = self._byte_offsets[rows]
        stops = self._byte_offsets[rows + 1]
        is_outside = (starts < 0) | (starts > stops) | (stops > len(self._text_bytes))
        # A damaged text is named by the reader of single ones.
        if is_outside.any():
            return list(map(self._text, rows.tolist()))
        content = self._text_bytes.data
        bounds = zip(starts.tolist(), stops.tolist(), strict=True)
        try:
            return [str(content[start:stop], "utf-8") for start, stop in bounds]
        except UnicodeDecodeError:
            return list(map(self._text, rows.tolist()))

    def _text(self, row: int) -> str:
        # Offsets are checked here, as checking all of them would make opening a store slower.
        start, stop = self._byte_offsets[row : row + 2].tolist()
        if not 0 <= start <= stop <= len(self._text_bytes):
            refuse(self._index.path, self._offsets.name, f"row {row} is out of range")
        try:
            return self._text_bytes[start:stop].tobytes().decode()
        except UnicodeDecodeError:
            refuse(self._index.path, self._bytes.name, f"row {row} is not UTF-8")

    def __repr__(self) -> str:
        return f"<{len(self):,} texts: {self._bytes.name.removesuffix('/bytes')}>"

    def __getstate__(self) -> dict[str, object]:
        return without_arrays(self)

    @cached_property
    def _text_bytes(self) -> np.ndarray:
        return self._index.array(self._bytes)

    @cached_property
    def _byte_offsets(self) -> np.ndarray:
        return self._index.array(self._offsets)


def without_arrays(reader: object) -> dict[str, object]:
    """Return an object's attributes for pickling, without arrays, which are mapped again."""
    state = dict(vars(reader))
    # Cached properties are attributes, too, once they have been computed.
    for name, value in vars(reader).items():
        if isinstance(value, np.ndarray):
            del state[name]
    return state

"""Lookup of rows by id, in a sorted table of hashes, so that no process reads all ids."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from cusa.data.store.hdf5 import array_location, child_group, refuse
from cusa.data.store.index_checks import check_lengths
from cusa.data.store.mapped_file import MappedFile

# Columns of a split that have a lookup table.
LOOKUP_COLUMNS = ("image_ids", "image_paths", "caption_ids")
_ROW_BITS = np.uint64(32)
_ROW_MASK = (1 << 32) - 1


def lookup_table(texts: Iterable[str]) -> np.ndarray:
    """Build the lookup table of a column: uint64 ``[n]``, ascending.

    The upper 32 bits of an entry are the CRC-32 of the text's UTF-8, the lower 32 bits its row.
    """
    keys = _keys(texts)
    return np.sort(keys | np.arange(len(keys), dtype=np.uint64))


def _keys(texts: Iterable[str]) -> np.ndarray:
    """Return the lowest table entry that each text could have: uint64 ``[n]``."""
    checksums = np.fromiter((zlib.crc32(text.encode()) for text in texts), np.uint64)
    return checksums << _ROW_BITS


class IdLookup:
    """Finds the rows of ids in a column of texts.

    Args:
        index: The index file.
        split_group: The split's group in it.
        name: The column's name there.
        texts: The column. For a store of an earlier version, which has no table, the table is built
            from all texts on first use.
    """

    def __init__(
        self,
        index: MappedFile,
        split_group: h5py.Group,
        name: str,
        texts: Sequence[str],
    ) -> None:
        self._index = index
        self._texts = texts
        self._name = f"{split_group.name}/lookup/{name}".lstrip("/")
        self._location = None
        if "lookup" in split_group:
            self._location = array_location(child_group(split_group, "lookup"), name, "<u8")
            check_lengths([len(texts), *self._location.shape], index.path, self._name)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Return the row of each id, int64 ``[n]``; -1 for unknown ids.

        Raises:
            StoreError: If the table names a row that does not exist.
        """
        keys = _keys(ids)
        first_positions = np.searchsorted(self._table, keys).tolist()
        rows = map(self._row, ids, keys.tolist(), first_positions)
        return np.fromiter(rows, np.int64, len(keys))

    def _row(
        self,
        text: str,
        key: int,
        position: int,
    ) -> int:
        """Return the row of a text, searching the table from a position; -1 if unknown."""
        checksum = key >> 32
        while position < len(self._table):
            entry = int(self._table[position])
            if entry >> 32 != checksum:
                return -1
            row = entry & _ROW_MASK
            if row >= len(self._texts):
                path = Path(self._index.path)
                refuse(path, self._name, "it names a row that does not exist")
            # Another text may have the same checksum.
            if self._texts[row] == text:
                return row
            position += 1
        return -1

    @cached_property
    def _table(self) -> np.ndarray:
        if self._location is None:
            return lookup_table(self._texts)
        return self._index.array(self._location)

    def __getstate__(self) -> dict[str, object]:
        # Another process maps the table itself.
        return {name: value for name, value in vars(self).items() if name != "_table"}

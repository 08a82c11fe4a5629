"""Lookup of rows by id, in a sorted table of hashes, so that no process reads all ids."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence, Set
from functools import cached_property
from typing import Any

import numpy as np

from cusa.data.errors import DataError
from cusa.data.parsing import described
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
    entries = _keys(texts)
    entries |= np.arange(len(entries), dtype=np.uint64)
    entries.sort()
    return entries


def _keys(texts: Iterable[str]) -> np.ndarray:
    """Return the least entry that each text could have: uint64 ``[n]``."""
    # Half a character is in no store, and may be asked for.
    encoded = (text.encode(errors="surrogatepass") for text in texts)
    keys = np.fromiter(map(zlib.crc32, encoded), np.uint64)
    keys <<= _ROW_BITS
    return keys


def id_texts(ids: Iterable[Any]) -> list[str]:
    """Return ids as the texts that a store has: texts, and whole numbers as their digits.

    Args:
        ids: Several ids, in a sequence, an array or a tensor of one dimension.

    Raises:
        DataError: If they are a single text, or one is something else: its text could be another's
            id.
    """
    # The characters of a single text could be ids, too.
    is_single = isinstance(ids, str | bytes) or not hasattr(ids, "__iter__")
    # A set has an order of its own.
    if is_single or isinstance(ids, Set) or getattr(ids, "ndim", 1) != 1:
        raise DataError(
            f"ids are asked for in a list, an array or tensor of one dimension, not as "
            f"{described(ids)}",
            name="ids",
        )
    # Arrays and tensors give numbers of their own kinds.
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    texts = []
    for number, item in enumerate(ids):
        item_id = item.item() if getattr(item, "ndim", None) == 0 else item
        is_id = isinstance(item_id, str | int) and not isinstance(item_id, bool)
        if not is_id:
            raise DataError(
                f"id {number} is {described(item)}; legal: texts (decode bytes) and whole numbers",
                name="ids",
                location=f"id {number}",
            )
        texts.append(str(item_id))
    return texts


class IdLookup:
    """Finds the rows of ids in a column of texts.

    The table is looked for on first use, so that opening a store costs the same with it.

    Args:
        index: The index file.
        split_name: Path of the split's group in it, such as ``"/splits/train"``.
        name: The column's name there.
        texts: The column. For a store of an earlier version, which has no table, the table is built
            from all texts.
    """

    def __init__(
        self,
        index: MappedFile,
        split_name: str,
        name: str,
        texts: Sequence[str],
    ) -> None:
        self._index = index
        self._split_name = split_name
        self._column = name
        self._texts = texts

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
                table_name = f"{self._split_name}/lookup/{self._column}"
                refuse(self._index.path, table_name, "it names a row that does not exist")
            # Another text may have the same checksum.
            if self._texts[row] == text:
                return row
            position += 1
        return -1

    @cached_property
    def _table(self) -> np.ndarray:
        with self._index.opened() as file:
            split_group = file[self._split_name]
            if "lookup" not in split_group:
                return lookup_table(self._texts)
            location = array_location(child_group(split_group, "lookup"), self._column, "<u8")
        check_lengths([len(self._texts), *location.shape], self._index.path, location.name)
        return self._index.array(location)

    def __getstate__(self) -> dict[str, object]:
        # Another process maps the table itself.
        return {name: value for name, value in vars(self).items() if name != "_table"}

"""Matching of foreign rows to the rows of a split, by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.store.split_table import SplitTable

_BLOCK_ROWS = 65_536  # looked through at once


def without_nan(order: np.ndarray, foreign_rows: np.ndarray) -> np.ndarray:
    """Return the order with -1 also where a row is all NaN, as exported rows are that were skipped.

    Args:
        order: int64 ``[n_rows]``: for each row of the split, that of ``foreign_rows``, or -1.
        foreign_rows: ``[n, dim]``.
    """
    order = order.copy()
    rows_of_split = np.flatnonzero(order >= 0)
    n_blocks = len(rows_of_split) // _BLOCK_ROWS + 1
    for block in np.array_split(rows_of_split, n_blocks):
        is_empty = np.isnan(foreign_rows[order[block]]).all(axis=1)
        order[block[is_empty]] = -1
    return order


def match_rows(
    table: SplitTable,
    modality: str,
    foreign_ids: Sequence[str],
) -> np.ndarray:
    """Return for each row of a split the number of the foreign row with its id, or -1: int64.

    Of the names that an image may go by, those count under which most rows are found.
    """
    row_of_id = {foreign_id: row for row, foreign_id in enumerate(foreign_ids)}
    if len(row_of_id) != len(foreign_ids):
        raise EmbeddingsError("the ids are not unique; each row needs its own")

    orders = []
    for names in _namings(table, modality):
        # A name of two images stands for neither.
        if len(set(names)) == len(names):
            orders.append(np.asarray([row_of_id.get(name, -1) for name in names], np.int64))
    return max(orders, key=lambda order: np.count_nonzero(order >= 0))


def _namings(table: SplitTable, modality: str) -> list[list[str]]:
    """Return the names that the rows of a split may go by, per way to name them."""
    if modality == "text":
        return [list(table.columns["caption_ids"])]
    image_paths = list(table.columns["image_paths"])
    file_names = [Path(path).name for path in image_paths]
    stems = [Path(path).stem for path in image_paths]
    return [list(table.columns["image_ids"]), image_paths, file_names, stems]

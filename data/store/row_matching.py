"""Matching of foreign rows to the rows of a split, by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.store.split_table import SplitTable

_BLOCK_ROWS = 65_536  # checked for NaN at a time


def without_nan(order: np.ndarray, foreign_rows: np.ndarray) -> np.ndarray:
    """Set the order to -1 where the foreign row is all NaN, as skipped rows are when exported.

    Args:
        order: int64 ``[n_rows]``: for each row of the split, its row in ``foreign_rows``, or -1.
        foreign_rows: ``[n, dim]``.

    Returns:
        A new order, int64 ``[n_rows]``.
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
    """Match each row of a split to the foreign row with its id.

    Foreign ids of images may be ids, paths, file names, or file names without suffix; of these, the
    one that matches most rows is used.

    Args:
        table: The split.
        modality: ``"image"`` or ``"text"``.
        foreign_ids: The id of each foreign row.

    Returns:
        int64 ``[n_rows]``: the number of the foreign row, or -1.

    Raises:
        EmbeddingsError: If the foreign ids are not unique.
    """
    row_of_id = {foreign_id: row for row, foreign_id in enumerate(foreign_ids)}
    if len(row_of_id) != len(foreign_ids):
        raise EmbeddingsError("the ids are not unique; each row needs its own")

    orders = []
    for names in _namings(table, modality):
        # File names may be ambiguous; then they cannot be used.
        if len(set(names)) == len(names):
            orders.append(np.asarray([row_of_id.get(name, -1) for name in names], np.int64))
    return max(orders, key=lambda order: np.count_nonzero(order >= 0))


def _namings(table: SplitTable, modality: str) -> list[list[str]]:
    """Return the names of a split's rows, for each way to name them."""
    if modality == "text":
        return [list(table.columns["caption_ids"])]
    image_paths = list(table.columns["image_paths"])
    file_names = [Path(path).name for path in image_paths]
    stems = [Path(path).stem for path in image_paths]
    return [list(table.columns["image_ids"]), image_paths, file_names, stems]

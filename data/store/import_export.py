"""Rows out of a store, and rows that other programs made into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from cusa.data.errors import CusaError, EmbeddingsError
from cusa.data.files import FolderLock
from cusa.data.foreign.rows import ForeignRows, write_rows
from cusa.data.records import Dataset
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.reader import Embeddings, EmbeddingStore
from cusa.data.store.schema import (
    SHARD_ROWS,
    TeacherSettings,
    check_name,
    shard_folder,
    shard_name,
    shard_ranges,
)
from cusa.data.store.shards import ShardHeader, ShardInfo, read_shard, stored_rows, write_shard
from cusa.data.store.split_table import SplitTable
from cusa.data.store.teacher_entry import TeacherEntry
from cusa.data.unit_rows import unit_rows

__all__ = ["ForeignRows", "export_rows", "import_rows", "index_for_import"]

_BLOCK_ROWS = 65_536  # read, or looked through, at once


def export_rows(
    store: EmbeddingStore,
    teacher: str,
    split: str,
    path: Path,
) -> Path:
    """Write a teacher's rows to a file of its own, and their ids beside it.

    :mod:`cusa.data.foreign.rows` reads them again.

    Args:
        store: The store.
        teacher: The teacher's name.
        split: The split.
        path: ``.npy`` (written block by block) or ``.safetensors`` (tensor ``embeddings``; passes
            through memory, with the teacher's settings as metadata).

    Returns:
        Path of the ids: a JSON list of image or caption ids, in row order; rows without an
        embedding are NaN.

    Raises:
        CusaError: If the suffix is another, or the rows cannot be read.
    """
    embeddings = store.embeddings(teacher, split)
    item_ids = store.split(split).caption_ids
    if embeddings.settings.modality == "image":
        item_ids = store.split(split).image_ids
    return write_rows(
        path,
        _blocks(embeddings),
        embeddings.shape,
        embeddings.dtype,
        item_ids,
        embeddings.settings.to_json(),
    )


def _blocks(embeddings: Embeddings) -> Iterator[np.ndarray]:
    """Yield all rows in order, a block at a time."""
    for start, stop in shard_ranges(len(embeddings), _BLOCK_ROWS):
        yield embeddings.gather(np.arange(start, stop))


def import_rows(
    out: Path,
    data: Index,
    split: str,
    teacher: str,
    settings: TeacherSettings,
    foreign: ForeignRows,
    skip_missing: bool,
) -> tuple[int, int]:
    """Add rows from elsewhere to a store as a teacher of one split.

    They are L2-normalised and brought into the split's order.

    Args:
        out: The store's index; made if it is not there.
        data: The data that the rows belong to.
        split: The split.
        teacher: Name for the teacher.
        settings: Its settings.
        foreign: The rows.
        skip_missing: Whether items of the split without a row, or with one of NaN, are recorded as
            skipped instead of refused.

    Returns:
        Number of rows skipped, and of foreign rows that belong to no item of the split.

    Raises:
        CusaError: If ids do not fit, or rows are zero or not finite.
    """
    check_name(teacher)
    if split not in data.splits:
        legal_splits = ", ".join(data.splits)
        raise CusaError(f"there is no split {split!r}; there are: {legal_splits}", name=split)
    table = data.splits[split]
    order = _row_order(table, settings.modality, foreign.ids)
    n_unused = len(foreign.ids) - int((order >= 0).sum())
    if skip_missing:
        order = _without_nan(order, foreign.rows)
    missing = np.flatnonzero(order < 0)
    if len(missing) == len(order) or (len(missing) and not skip_missing):
        _refuse_missing(missing, table, split, settings.modality, foreign)

    with FolderLock(shard_folder(out)):
        entry = TeacherEntry(settings, {}, foreign.source)
        added = replace(data, teachers={teacher: entry})
        present = None
        if out.exists():
            present = read_index(out)
            _refuse_present_rows(out, present, teacher, split)
            present.joined(added, str(out))  # refuses other data before a shard is made

        header = ShardHeader(teacher, split, table.fingerprint, 0, len(order), settings)
        shards = _write_shards(out, header, order, foreign.rows)
        entry = replace(entry, shards={split: shards})
        added = replace(data, teachers={teacher: entry})
        if present is not None:
            added = present.joined(added, str(out))
        write_index(out, added)
    return len(missing), n_unused


def _refuse_missing(
    missing: np.ndarray,
    table: SplitTable,
    split: str,
    modality: str,
    foreign: ForeignRows,
) -> NoReturn:
    """Raise the error of items of a split that have no foreign row."""
    item_ids = list(table.item_ids(modality))
    example = item_ids[missing[0]]
    first_foreign_id = next(iter(foreign.ids), None)
    raise CusaError(
        f"{foreign.source}: no row for {len(missing)} of {len(item_ids)} ids of split {split!r}, "
        f"such as {example!r} (its first id: {first_foreign_id!r}); --on-error skip would leave "
        "them out",
        name=example,
    )


def _refuse_present_rows(
    out: Path,
    present: Index,
    teacher: str,
    split: str,
) -> None:
    """Refuse to replace a teacher's rows, unless their files are gone."""
    if teacher not in present.teachers:
        return
    shards = present.teachers[teacher].shards.get(split)
    if shards is None:
        return
    if all((out.parent / shard.file).exists() for shard in shards):
        raise CusaError(
            f"{out} has rows of teacher {teacher!r} for split {split!r} already; pass another "
            "--teacher name",
            path=out,
            name=teacher,
        )


def _write_shards(
    out: Path,
    header: ShardHeader,
    order: np.ndarray,
    foreign_rows: np.ndarray,
) -> tuple[ShardInfo, ...]:
    """Write foreign rows as shards.

    Args:
        out: The store's index.
        header: What the rows of all shards together are.
        order: int64 ``[n_rows]``: for each row of the split, that of ``foreign_rows``, or -1.
        foreign_rows: ``[n, dim]``.
    """
    dtype = np.dtype(header.settings.dtype).newbyteorder("<")
    shards = []
    for start, stop in shard_ranges(len(order), SHARD_ROWS):
        shard_header = replace(header, start=start, stop=stop)
        relative_path = shard_name(header.teacher, header.split, start, stop)
        file = f"{shard_folder(out).name}/{relative_path}"
        _refuse_other_shard(out.parent, file, shard_header)

        shard_order = order[start:stop]
        has_row = shard_order >= 0
        row_numbers = start + np.flatnonzero(has_row)
        rows = _normalized(foreign_rows[shard_order[has_row]], row_numbers)
        block = np.full((stop - start, header.settings.dim), np.nan, dtype)
        block[has_row] = stored_rows(rows, header.settings.dtype, row_numbers)
        skipped = start + np.flatnonzero(~has_row)
        shards.append(write_shard(out.parent, file, shard_header, block, skipped.tolist()))
    return tuple(shards)


def _refuse_other_shard(
    folder: Path,
    file: str,
    header: ShardHeader,
) -> None:
    """Refuse to replace a shard that holds other rows."""
    path = folder / file
    if not path.exists():
        return
    stored_header, _ = read_shard(folder, file)
    if stored_header != header:
        raise CusaError(
            f"{path} holds other rows; pass another --teacher name or another store",
            path=path,
            name=header.teacher,
        )


def _without_nan(order: np.ndarray, foreign_rows: np.ndarray) -> np.ndarray:
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


def _row_order(
    table: SplitTable,
    modality: str,
    foreign_ids: Sequence[str],
) -> np.ndarray:
    """Return for each row of a split the number of the foreign row with its id, or -1: int64.

    Of the names that an image may go by, those count under which most rows are found.
    """
    row_of_id = {foreign_id: row for row, foreign_id in enumerate(foreign_ids)}
    if len(row_of_id) != len(foreign_ids):
        raise CusaError("the ids are not unique; each row needs its own")

    orders = []
    for names in _namings(table, modality):
        # A name of two images stands for neither.
        if len(set(names)) == len(names):
            orders.append(np.asarray([row_of_id.get(name, -1) for name in names], np.int64))
    return max(orders, key=_n_found)


def _n_found(order: np.ndarray) -> int:
    return int((order >= 0).sum())


def _namings(table: SplitTable, modality: str) -> list[list[str]]:
    """Return the names that the rows of a split may go by, per way to name them."""
    if modality == "text":
        return [list(table.columns["caption_ids"])]
    image_paths = list(table.columns["image_paths"])
    file_names = [Path(path).name for path in image_paths]
    stems = [Path(path).stem for path in image_paths]
    return [list(table.columns["image_ids"]), image_paths, file_names, stems]


def _normalized(rows: np.ndarray, row_numbers: np.ndarray) -> np.ndarray:
    """Return rows of length one; those that are as normalised as their dtype can be stay as is.

    Args:
        rows: ``[n, dim]``.
        row_numbers: Their numbers in the split, for the message.

    Raises:
        EmbeddingsError: If a row is all zeros.
    """
    wide_rows = np.asarray(rows, np.float64)
    is_zero = ~wide_rows.any(axis=1)
    if is_zero.any():
        row = int(row_numbers[is_zero][0])
        raise EmbeddingsError(
            f"row {row} of the split has an embedding of zeros", name=f"row {row}"
        )

    rounding = 0.0
    if rows.dtype.kind == "f":
        rounding = float(np.finfo(rows.dtype).eps)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(wide_rows, axis=1, keepdims=True)
        is_unit = np.abs(lengths - 1) <= rounding
    return np.where(is_unit, wide_rows, unit_rows(rows, np.float64))


def index_for_import(out: Path, dataset: Dataset | None) -> Index:
    """Return the data that rows are imported for: a data set's, or the store's own.

    Raises:
        CusaError: If there is neither.
    """
    if dataset is not None:
        return Index.from_dataset(dataset, {})
    if not out.exists():
        raise CusaError(
            f"{out} does not exist yet: pass --dataset, so that it can be made", path=out
        )
    present = read_index(out)
    return Index(present.dataset, present.image_root, present.splits)

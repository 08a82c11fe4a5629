"""Export of rows from a store, and import of rows that other programs made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from cusa.data.errors import EmbeddingsError, SettingError, StoreError
from cusa.data.files import FolderLock
from cusa.data.foreign.rows import ForeignRows, write_rows
from cusa.data.records import Dataset
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.row_matching import match_rows, without_nan
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

_BLOCK_ROWS = 65_536  # read at a time


def export_rows(
    store: EmbeddingStore,
    teacher_name: str,
    split_name: str,
    path: Path,
) -> Path:
    """Write a teacher's rows for a split to a file, and their ids to another beside it.

    :mod:`cusa.data.foreign.rows` can read them. The rows are ``[n_rows, dim]`` in the stored dtype;
    skipped rows are NaN.

    Args:
        store: The store.
        teacher_name: The teacher's name.
        split_name: The split.
        path: ``.npy`` (written block by block) or ``.safetensors`` (tensor ``embeddings``, with the
            teacher's settings as metadata; all rows are in memory at once).

    Returns:
        Path of the file of ids: a JSON list of image or caption ids, in row order.

    Raises:
        CusaError: If the suffix is another, or the rows cannot be read.
    """
    embeddings = store.embeddings(teacher_name, split_name)
    item_ids = store.split(split_name).caption_ids
    if embeddings.settings.modality == "image":
        item_ids = store.split(split_name).image_ids
    ranges = shard_ranges(len(embeddings), _BLOCK_ROWS)
    return write_rows(
        path,
        (embeddings.gather(np.arange(start, stop)) for start, stop in ranges),
        embeddings.shape,
        embeddings.dtype,
        item_ids,
        embeddings.settings.to_json(),
    )


def import_rows(
    out: Path,
    data: Index,
    split_name: str,
    teacher_name: str,
    settings: TeacherSettings,
    foreign: ForeignRows,
    skip_missing: bool,
) -> tuple[int, int]:
    """Add rows that another program made to a store, as a teacher's rows for one split.

    They are L2-normalised and put into the split's order.

    Args:
        out: The store's index; created if it does not exist.
        data: Index of the data that the rows belong to.
        split_name: The split.
        teacher_name: Name of the teacher in the store.
        settings: The teacher's settings.
        foreign: The rows and their ids.
        skip_missing: Whether an item of the split without a row, or with a row of NaN, is recorded
            as skipped instead of refused.

    Returns:
        The number of skipped items, and of foreign rows that belong to no item of the split.

    Raises:
        CusaError: If the ids do not fit the split, rows are zero or not finite, or the store has
            the teacher's rows already.
    """
    check_name(teacher_name)
    if split_name not in data.splits:
        legal_splits = ", ".join(data.splits)
        raise SettingError(
            f"the data has no split {split_name!r}; it has: {legal_splits}", name="split"
        )
    table = data.splits[split_name]
    order = match_rows(table, settings.modality, foreign.ids)
    n_unused = len(foreign.ids) - int((order >= 0).sum())
    if skip_missing:
        order = without_nan(order, foreign.rows)
    missing = np.flatnonzero(order < 0)
    if len(missing) == len(order) or (len(missing) and not skip_missing):
        _refuse_missing(
            missing,
            table,
            split_name,
            settings.modality,
            foreign,
        )

    with FolderLock(shard_folder(out)):
        entry = TeacherEntry(settings, {}, foreign.source)
        added = replace(data, teachers={teacher_name: entry})
        # Read under the lock: another import may have added rows since.
        present = None
        if out.exists():
            present = read_index(out)
            _refuse_present_rows(out, present, teacher_name, split_name)
            # Refuses other data before a shard is made.
            present.joined(added, str(out))

        header = ShardHeader(
            teacher=teacher_name,
            split=split_name,
            fingerprint=table.fingerprint,
            start=0,
            stop=len(order),
            settings=settings,
        )
        shards = _write_shards(out, header, order, foreign.rows)
        entry = replace(entry, shards={split_name: shards})
        added = replace(data, teachers={teacher_name: entry})
        if present is not None:
            added = present.joined(added, str(out))
        write_index(out, added)
    return len(missing), n_unused


def _refuse_missing(
    missing: np.ndarray,
    table: SplitTable,
    split_name: str,
    modality: str,
    foreign: ForeignRows,
) -> NoReturn:
    """Raise the error of items of a split without a foreign row."""
    item_ids = list(table.item_ids(modality))
    example = item_ids[missing[0]]
    first_foreign_id = next(iter(foreign.ids), None)
    raise EmbeddingsError(
        f"{foreign.source}: no row for {len(missing)} of {len(item_ids)} ids of split "
        f"{split_name!r}, such as {example!r} (its first id: {first_foreign_id!r}); --on-error "
        "skip would leave them out",
        name=example,
    )


def _refuse_present_rows(
    out: Path,
    present: Index,
    teacher_name: str,
    split_name: str,
) -> None:
    """Refuse to replace a teacher's rows, unless shards of them are missing."""
    if teacher_name not in present.teachers:
        return
    shards = present.teachers[teacher_name].shards.get(split_name)
    if shards is None:
        return
    if all((out.parent / shard.file).exists() for shard in shards):
        raise StoreError(
            f"{out} has rows of teacher {teacher_name!r} for split {split_name!r} already; pass "
            "another --teacher name",
            path=out,
            name=teacher_name,
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
        header: A header for all rows of the split, from which each shard's is made.
        order: int64 ``[n_rows]``: for each row of the split, its foreign row, or -1.
        foreign_rows: ``[n, dim]``.
    """
    dtype = np.dtype(header.settings.dtype).newbyteorder("<")
    shards = []
    for start, stop in shard_ranges(len(order), SHARD_ROWS):
        shard_header = replace(header, start=start, stop=stop)
        relative_path = shard_name(header.teacher, header.split, start, stop)
        shard_file = f"{shard_folder(out).name}/{relative_path}"
        # Shards of an interrupted import are written again.
        _refuse_other_shard(out.parent, shard_file, shard_header)

        shard_order = order[start:stop]
        has_row = shard_order >= 0
        row_numbers = start + np.flatnonzero(has_row)
        rows = _normalized(foreign_rows[shard_order[has_row]], row_numbers)
        block = np.full((stop - start, header.settings.dim), np.nan, dtype)
        block[has_row] = stored_rows(rows, header.settings.dtype, row_numbers)
        skipped = start + np.flatnonzero(~has_row)
        shard = write_shard(
            out.parent,
            shard_file,
            shard_header,
            block,
            skipped.tolist(),
        )
        shards.append(shard)
    return tuple(shards)


def _refuse_other_shard(
    folder: Path,
    shard_file: str,
    header: ShardHeader,
) -> None:
    """Refuse to replace a shard that holds other rows."""
    path = folder / shard_file
    if not path.exists():
        return
    stored_header, _ = read_shard(folder, shard_file)
    if stored_header != header:
        raise StoreError(
            f"{path} holds other rows; pass another --teacher name or another store",
            path=path,
            name=header.teacher,
        )


def _normalized(rows: np.ndarray, row_numbers: np.ndarray) -> np.ndarray:
    """L2-normalise rows, except those that already are, up to rounding in their dtype."""
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
    """Return the index to import rows into: a data set's or else the store's, without teachers.

    Raises:
        CusaError: If there is no data set, and no readable store.
    """
    if dataset is not None:
        return Index.from_dataset(dataset, {})
    if not out.exists():
        raise StoreError(f"{out} does not exist; pass --dataset to create it", path=out)
    present = read_index(out)
    return Index(present.dataset, present.image_root, present.splits)

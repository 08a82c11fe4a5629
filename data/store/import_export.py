"""Rows out of a store and into one: teachers of other programs' making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cusa.data.errors import CusaError, EmbeddingsError
from cusa.data.files import FolderLock
from cusa.data.foreign.rows import ForeignRows, write_rows
from cusa.data.records import Dataset
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import (
    SHARD_ROWS,
    TeacherSettings,
    check_name,
    shard_folder,
    shard_name,
    shard_ranges,
)
from cusa.data.store.shards import ShardHeader, read_shard, stored_rows, write_shard
from cusa.data.store.split_table import SplitTable
from cusa.data.store.teacher_entry import TeacherEntry
from cusa.data.unit_rows import unit_rows

__all__ = ["ForeignRows", "data_of", "export_rows", "import_rows"]

_BLOCK = 65_536


def export_rows(store: EmbeddingStore, teacher: str, split: str, path: Path) -> Path:
    """Write a teacher's rows to a file of its own, and their ids beside it.

    :mod:`cusa.data.foreign.rows` reads them again.

    Args:
        store: The store.
        teacher: The teacher's name.
        split: The split.
        path: ``.npy`` (written block by block) or ``.safetensors`` (tensor ``embeddings``; passes
            through memory, with the teacher's settings as metadata).

    Returns:
        Path of the ids: a JSON list of image or caption ids, in row order; rows without an embedding are NaN.

    Raises:
        CusaError: If the suffix is another, or the rows cannot be read.
    """
    rows, table = store.embeddings(teacher, split), store.split(split)
    ids = table.image_ids if rows.settings.modality == "image" else table.caption_ids
    blocks = (
        rows.gather(np.arange(a, min(a + _BLOCK, len(rows)))) for a in range(0, len(rows), _BLOCK)
    )
    return write_rows(path, blocks, rows.shape, rows.dtype, ids, rows.settings.to_json())


def import_rows(
    out: Path,
    data: Index,
    split: str,
    teacher: str,
    settings: TeacherSettings,
    foreign: ForeignRows,
    skip_missing: bool,
) -> tuple[int, int]:
    """Add rows from elsewhere to a store as a teacher of one split, L2-normalised and in the split's order.

    Args:
        out: The store's index; made if it is not there.
        data: The data that the rows belong to.
        split: The split.
        teacher: Name for the teacher.
        settings: Its settings.
        foreign: The rows.
        skip_missing: Whether items of the split without a row, or with one of NaN, are recorded as skipped instead of
            refused.

    Returns:
        Number of rows skipped, and of foreign rows that belong to no item of the split.

    Raises:
        CusaError: If ids do not fit, or rows are zero or not finite.
    """
    check_name(teacher)
    if split not in data.splits:
        raise CusaError(f"there is no split {split!r}; there are: {', '.join(data.splits)}")
    table, ids = data.splits[split], foreign.ids
    order = _order(table, settings.modality, ids)
    n_unused = len(ids) - int((order >= 0).sum())
    if skip_missing:
        order = _without_nan(order, foreign.rows)
    missing = np.flatnonzero(order < 0)
    if len(missing) == len(order) or (len(missing) and not skip_missing):
        names = list(table.columns["image_ids" if settings.modality == "image" else "caption_ids"])
        raise CusaError(
            f"{foreign.source}: no row for {len(missing)} of {len(order)} ids of split {split!r}, such as "
            f"{names[missing[0]]!r} (its first id: {ids[0] if ids else None!r}); --on-error skip would leave them out"
        )
    shards = []
    with FolderLock(shard_folder(out)):
        old = read_index(out) if out.exists() else None
        if old is not None:
            there = old.teachers[teacher].shards.get(split) if teacher in old.teachers else None
            if there is not None and all((out.parent / shard.file).exists() for shard in there):
                raise CusaError(
                    f"{out} has rows of teacher {teacher!r} for split {split!r} already; pass another --teacher name"
                )
            old.joined(
                replace(data, teachers={teacher: TeacherEntry(settings, {})}), str(out)
            )  # before a shard is made
        for start, stop in shard_ranges(len(order), SHARD_ROWS):
            header = ShardHeader(teacher, split, table.fingerprint, start, stop, settings)
            block = np.full(
                (stop - start, settings.dim), np.nan, np.dtype(settings.dtype).newbyteorder("<")
            )
            here = np.flatnonzero(order[start:stop] >= 0)
            rows = _normalized(foreign.rows[order[start + here]], start + here)
            block[here] = stored_rows(rows, settings.dtype, start + here)
            file = f"{shard_folder(out).name}/{shard_name(teacher, split, start, stop)}"
            if (out.parent / file).exists() and read_shard(out.parent, file)[0] != header:
                raise CusaError(
                    f"{out.parent / file} holds other rows; pass another --teacher name or another store"
                )
            skipped = missing[(missing >= start) & (missing < stop)].tolist()
            shards.append(write_shard(out.parent, file, header, block, skipped))
        added = replace(
            data, teachers={teacher: TeacherEntry(settings, {split: tuple(shards)}, foreign.source)}
        )
        write_index(out, old.joined(added, str(out)) if old is not None else added)
    return len(missing), n_unused


def _without_nan(order: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The order, with -1 also where a row is NaN throughout, as exported rows are that were skipped."""
    here = np.flatnonzero(order >= 0)
    empty = np.concatenate([
        np.isnan(rows[order[part]]).all(axis=1) for part in np.array_split(here, len(here) // _BLOCK + 1)
    ])  # fmt: skip
    order = order.copy()
    order[here[empty]] = -1
    return order


def _order(table: SplitTable, modality: str, ids: Sequence[str]) -> np.ndarray:
    """int64: for each row of the split, the number of its id, or -1; by the naming under which most are found."""
    number = {name: i for i, name in enumerate(ids)}
    if len(number) != len(ids):
        raise CusaError("the ids are not unique; each row needs its own")
    if modality == "text":
        namings = [list(table.columns["caption_ids"])]
    else:
        paths = [Path(p) for p in table.columns["image_paths"]]
        namings = [list(table.columns["image_ids"]), list(table.columns["image_paths"])]
        namings += [[p.name for p in paths], [p.stem for p in paths]]
    namings = [
        naming for naming in namings if len(set(naming)) == len(naming)
    ]  # a name of two images means neither
    orders = [np.asarray([number.get(name, -1) for name in naming], np.int64) for naming in namings]
    return max(orders, key=lambda order: int((order >= 0).sum()))


def _normalized(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Rows of length one; those that are as normalised as their dtype can be stay as they are."""
    rounding = np.finfo(rows.dtype).eps if rows.dtype.kind == "f" else 0
    wide = np.asarray(rows, np.float64)
    if not wide.any(axis=1).all():
        row = int(numbers[np.flatnonzero(~wide.any(axis=1))[0]])
        raise EmbeddingsError(
            f"row {row} of the split has an embedding of zeros", name=f"row {row}"
        )
    with np.errstate(over="ignore"):
        is_unit = np.abs(np.linalg.norm(wide, axis=1, keepdims=True) - 1) <= rounding
    return np.where(is_unit, wide, unit_rows(rows, np.float64))


def data_of(out: Path, dataset: Dataset | None) -> Index:
    """The data that rows are imported for: a store's own, or a data set's.

    Raises:
        CusaError: If there is neither.
    """
    if dataset is not None:
        return Index.from_dataset(dataset, {})
    if not out.exists():
        raise CusaError(f"{out} does not exist yet: pass --dataset, so that it can be made")
    known = read_index(out)
    return Index(known.dataset, known.image_root, known.splits)

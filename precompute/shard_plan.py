"""Which shards a run has to make, and which of them are finished."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cusa.data.errors import CusaError, StoreError
from cusa.data.store import schema
from cusa.data.store.checksum import SHARD_FORMAT, seal_holds
from cusa.data.store.index import Index
from cusa.data.store.schema import TeacherSettings
from cusa.data.store.shards import ShardHeader, ShardInfo, read_shard

_HASHING_THREADS = 4


@dataclass(frozen=True)
class ShardTask:
    """One shard to make.

    Attributes:
        index: Path of the store's index.
        teacher: The teacher's name in the store.
        split: Split name.
        start: First row.
        stop: Row after the last.
    """

    index: Path
    teacher: str
    split: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Path relative to the shard folder."""
        return schema.shard_name(self.teacher, self.split, self.start, self.stop)

    @property
    def file(self) -> str:
        """Path relative to the index's folder."""
        return f"{schema.shard_folder(self.index).name}/{self.name}"

    @property
    def path(self) -> Path:
        """The shard's file."""
        return self.index.parent / self.file

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def plan_teacher(
    index: Path, teacher: str, n_rows: Mapping[str, int], shard_rows: int | None
) -> list[ShardTask]:
    """The shards of a teacher.

    Args:
        index: Path of the store's index.
        teacher: The teacher's name in the store.
        n_rows: Number of rows by split name.
        shard_rows: Rows per shard; ``None``: as the shards that are there, or 16,384.

    Raises:
        StoreError: If shards of another length are there.
    """
    tasks = []
    for split, n in n_rows.items():
        there = _ranges_there(index, teacher, split)
        lengths = {stop - start for start, stop in there if stop < n or start == 0}
        length = shard_rows or (max(lengths) if lengths else schema.SHARD_ROWS)
        ranges = schema.shard_ranges(n, length)
        if strange := sorted(there - set(ranges)):
            start, stop = strange[0]
            path = ShardTask(index, teacher, split, start, stop).path
            raise StoreError(
                f"{path} is there, but shards of {length} rows of {n} are asked for; pass --shard-rows "
                f"{stop - start} if they were made with that, or another --out",
                path=path,
                name=teacher,
            )
        tasks += [ShardTask(index, teacher, split, start, stop) for start, stop in ranges]
    return tasks


def _ranges_there(index: Path, teacher: str, split: str) -> set[tuple[int, int]]:
    """Row ranges of the shard files that a folder has of a split."""
    folder = (schema.shard_folder(index) / schema.shard_name(teacher, split, 0, 0)).parent
    pattern = re.compile(re.escape(schema.file_name(split)) + r"-(\d{9,})-(\d{9,})\.h5")
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return {(int(m[1]), int(m[2])) for m in map(pattern.fullmatch, names) if m}


def stored_settings(
    teacher: str,
    index: Index | None,
    tasks: Sequence[ShardTask],
) -> TeacherSettings | None:
    """What the rows of a teacher that are there were made with, ``None`` if there are none.

    Args:
        teacher: The teacher's name in the store.
        index: The store's index, if there is one.
        tasks: The planned shards: without an index, the first that is there tells.
    """
    if index is not None and teacher in index.teachers:
        return index.teachers[teacher].settings
    for task in tasks:
        if task.teacher == teacher and task.path.exists():
            with contextlib.suppress(CusaError, OSError):  # a damaged one will be made again
                return read_shard(task.index.parent, task.file)[0].settings
    return None


def finished_shards(
    tasks: Sequence[ShardTask], headers: Sequence[ShardHeader], redo_skipped: bool = False
) -> tuple[dict[int, ShardInfo], dict[int, Path]]:
    """Find the shards that earlier runs finished, their checksums taken again.

    Args:
        tasks: The planned shards.
        headers: What each of them has to hold.
        redo_skipped: Whether a shard that skipped rows counts as not finished.

    Returns:
        Finished shards by task number, and damaged files by task number; those are to be made again.

    Raises:
        StoreError: If a finished shard was made with other settings or from other data; names the
            fields.
    """

    def look(task: ShardTask, header: ShardHeader) -> ShardInfo | Path | None:
        if not task.path.exists():
            return None
        try:
            if not seal_holds(task.path, SHARD_FORMAT):
                return task.path
        except OSError:  # such as a bad sector
            return task.path
        found, info = read_shard(task.index.parent, task.file, is_verified=True)
        if fields := header.differing(found):
            raise StoreError(
                f"{task.path} was made with other settings, not to be mixed: {'; '.join(fields)}; pass another --out, "
                "or move it away to make it again",
                path=task.path,
                name=task.teacher,
            )
        return None if redo_skipped and info.skipped else info

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        found = list(pool.map(look, tasks, headers))
    return (
        {number: info for number, info in enumerate(found) if isinstance(info, ShardInfo)},
        {number: path for number, path in enumerate(found) if isinstance(path, Path)},
    )

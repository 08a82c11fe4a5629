"""The plan of a run's shards, and which of them are finished."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path

import numpy as np

from cusa.data.errors import SettingError, StoreError
from cusa.data.store import schema
from cusa.data.store.checksum import SHARD_FORMAT, read_seal, seal_holds
from cusa.data.store.shards import ShardHeader, ShardInfo, read_shard

# Threads overlap the reading of one file with the hashing of another.
_HASHING_THREADS = 4
Shard = tuple[ShardHeader, ShardInfo]


@dataclass(frozen=True)
class ShardTask:
    """A shard to make.

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
        """The shard's path relative to the shard folder."""
        return schema.shard_name(self.teacher, self.split, self.start, self.stop)

    @property
    def file(self) -> str:
        """The shard's path relative to the index's folder."""
        return f"{schema.shard_folder(self.index).name}/{self.name}"

    @property
    def path(self) -> Path:
        """The shard's file."""
        return self.index.parent / self.file

    @property
    def rows(self) -> np.ndarray:
        """The shard's rows of the split, int64 ``[n_rows]``."""
        return np.arange(self.start, self.stop)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def plan_teacher(
    index: Path,
    teacher: str,
    n_rows_by_split: Mapping[str, int],
    shard_rows: int | None,
) -> list[ShardTask]:
    """Plan the shards of a teacher.

    Args:
        index: Path of the store's index.
        teacher: The teacher's name in the store.
        n_rows_by_split: Number of rows by split name.
        shard_rows: Rows per shard; ``None``: as for the shards on disk, or 16,384.

    Raises:
        StoreError: If there are shards of another length on disk.
    """
    tasks: list[ShardTask] = []
    for split, n_rows in n_rows_by_split.items():
        ranges_on_disk = _ranges_on_disk(index, teacher, split)
        length = shard_rows or _length_on_disk(ranges_on_disk, n_rows) or schema.SHARD_ROWS
        ranges = schema.shard_ranges(n_rows, length)

        unplanned = sorted(ranges_on_disk - set(ranges))
        if unplanned:
            start, stop = unplanned[0]
            path = ShardTask(index, teacher, split, start, stop).path
            raise StoreError(
                f"{path} exists, but this run makes shards of {length} rows out of {n_rows}; pass "
                f"--shard-rows {stop - start} if it was made with that, or another --out",
                path=path,
                name=teacher,
            )
        tasks += starmap(partial(ShardTask, index, teacher, split), ranges)
    return tasks


def tasks_in_range(tasks: Sequence[ShardTask], shard_range: tuple[int, int]) -> list[ShardTask]:
    """Return the shards of a range A:B, which are numbers A to B - 1.

    Raises:
        SettingError: If the range is empty or out of bounds.
    """
    first, stop = shard_range
    if not 0 <= first < stop <= len(tasks):
        raise SettingError(
            f"--shard-range {first}:{stop}: this run has the shards 0:{len(tasks)}, and A:B means "
            "shards A to B - 1",
            name="shard_range",
        )
    return list(tasks[first:stop])


def part_path(out: Path, shard_range: tuple[int, int], tasks: Sequence[ShardTask]) -> Path:
    """Return the path of the index of a range of shards, which is beside the store's.

    Args:
        out: Path of the store's index.
        shard_range: The range A:B.
        tasks: The shards of the range.
    """
    # The digest distinguishes equal ranges of runs with other teachers, splits or shard lengths.
    names = "\n".join(task.name for task in tasks)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    first, stop = shard_range
    return out.with_name(f"{out.stem}.part-{first}-{stop}-{digest}.h5")


def _ranges_on_disk(index: Path, teacher: str, split: str) -> set[tuple[int, int]]:
    """Return the row ranges of a teacher's shard files for a split."""
    folder = (schema.shard_folder(index) / schema.shard_name(teacher, split, 0, 0)).parent
    if not folder.is_dir():
        return set()

    pattern = re.compile(re.escape(schema.file_name(split)) + r"-(\d{9,})-(\d{9,})\.h5")
    ranges: set[tuple[int, int]] = set()
    for entry in folder.iterdir():
        match = pattern.fullmatch(entry.name)
        if match is not None:
            ranges.add((int(match[1]), int(match[2])))
    return ranges


def _length_on_disk(ranges: Collection[tuple[int, int]], n_rows: int) -> int | None:
    """Return the number of rows of the shards on disk; ``None`` if it is unknown."""
    # The last shard of a split may be shorter, so it counts only if it is also the first.
    lengths = [stop - start for start, stop in ranges if stop < n_rows or start == 0]
    return max(lengths, default=None)


def intact_shards(
    tasks: Sequence[ShardTask],
    verified: Mapping[ShardTask, Shard] | None = None,
) -> dict[ShardTask, Shard]:
    """Read the shards on disk whose checksums hold.

    Args:
        tasks: The planned shards.
        verified: Shards that were verified before; they are verified again only if their seal has
            changed.

    Raises:
        StoreError: If a shard cannot be read although its checksum holds.
    """
    intact: dict[ShardTask, Shard] = {}
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        verified_shards = map((verified or {}).get, tasks)
        shards = threads.map(_read_if_intact, tasks, verified_shards)
        for task, shard in zip(tasks, shards, strict=True):
            if shard is not None:
                intact[task] = shard
    return intact


def _read_if_intact(task: ShardTask, verified: Shard | None = None) -> Shard | None:
    """Read a shard; ``None`` if it is missing, or damaged and to be made again."""
    # Reading a bad sector raises an OSError.
    with contextlib.suppress(OSError):
        if verified is not None:
            _, info = verified
            if _seal_or_none(task) == info.sha256:
                return verified
        if seal_holds(task.path, SHARD_FORMAT):
            return read_shard(task.index.parent, task.file, is_verified=True)
    return None


def _seal_or_none(task: ShardTask) -> str | None:
    with contextlib.suppress(StoreError):
        return read_seal(task.path, SHARD_FORMAT)
    return None


def finished_shards(
    tasks: Sequence[ShardTask],
    header_of: Callable[[ShardTask], ShardHeader],
    redo_skipped: bool,
    verified: Mapping[ShardTask, Shard],
) -> tuple[dict[ShardTask, ShardInfo], list[Path]]:
    """Find the shards that earlier runs finished, verifying all of their checksums.

    Args:
        tasks: The planned shards.
        header_of: Returns the header that a shard must have.
        redo_skipped: Whether a shard with skipped rows counts as unfinished.
        verified: Shards that were verified before, as for :func:`intact_shards`.

    Returns:
        The finished shards, and the damaged files, which are to be made again.

    Raises:
        StoreError: If a finished shard was made with other settings or from other data; names the
            fields.
    """
    intact = intact_shards(tasks, verified)
    finished: dict[ShardTask, ShardInfo] = {}
    for task, (header, info) in intact.items():
        differences = header_of(task).differences(header)
        if differences:
            raise StoreError(
                f"{task.path} was made with other settings, not to be mixed: "
                f"{'; '.join(differences)}; pass another --out, or move it away to make it again",
                path=task.path,
                name=task.teacher,
            )
        if not (redo_skipped and info.skipped):
            finished[task] = info
    missing = [task.path for task in tasks if task not in intact]
    return finished, list(filter(Path.exists, missing))

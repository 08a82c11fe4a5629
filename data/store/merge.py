"""Joining stores: the parts that an array of jobs made, or stores with other teachers or splits of the same data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.files import FolderLock, atomic_file
from cusa.data.store.checksum import INDEX_FORMAT, SHARD_FORMAT, read_seal, seal_holds
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.schema import check_index_path, shard_folder, shard_name
from cusa.data.store.teacher_entry import TeacherEntry

_THREADS = 4


def merge(out: Path, parts: Sequence[Path]) -> Index:
    """Join stores into one.

    Every shard's checksum is verified; shards that do not lie in the folder of ``out`` yet are copied there.

    Args:
        out: Path of the joined index; one that is there already takes part.
        parts: Indexes to join, whole stores or parts.

    Returns:
        The joined index.

    Raises:
        StoreError: If the parts are not of the same data or settings, hold different rows in the
            same place, or together leave rows out; says which.
    """
    sources = [path for path in parts if path.resolve() != out.resolve()]
    if out.exists():
        sources.insert(0, out)
    if not sources:
        raise StoreError("nothing to join: name the parts", path=out)
    check_index_path(out)
    for source in sources:
        read_seal(source, INDEX_FORMAT)  # before a folder is made
    with FolderLock(shard_folder(out)):
        joined: Index | None = None
        places: dict[
            str, tuple[Path, str]
        ] = {}  # file in the joined store -> where it is now, its seal
        for source in sources:
            index, where = read_index(source), f"{source} cannot be joined: {sources[0]}"
            if joined is not None:
                joined.joined(index, where)  # other data or settings are the reason for other rows
            teachers = {
                name: _placed(out, source, name, entry, places)
                for name, entry in index.teachers.items()
            }
            index = replace(index, teachers=teachers)
            joined = index if joined is None else joined.joined(index, where)
        assert joined is not None, "there is at least one source"
        if gaps := joined.gaps():
            message = (
                f"the parts do not make a whole store: {'; '.join(gaps[:3])} ({len(gaps)} in all)"
            )
            raise StoreError(message, path=out)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(
                pool.map(
                    lambda item: _bring(item[1][0], out.parent / item[0], item[1][1]),
                    places.items(),
                )
            )
        write_index(out, joined)
        return joined


def _placed(
    out: Path, source: Path, name: str, entry: TeacherEntry, places: dict[str, tuple[Path, str]]
) -> TeacherEntry:
    """A teacher's entry with its shards where they will lie."""
    shards = {}
    for split, infos in entry.shards.items():
        moved = []
        for info in infos:
            file = f"{shard_folder(out).name}/{shard_name(name, split, info.start, info.stop)}"
            here = source.parent / info.file
            before, seal = places.setdefault(file, (here, info.sha256))
            if seal != info.sha256:
                raise StoreError(
                    f"{here} and {before} hold different rows {info.start} to {info.stop} of teacher {name!r}, split "
                    f"{split!r}; leave one of them out",
                    path=here,
                    name=name,
                )
            moved.append(replace(info, file=file))
        shards[split] = tuple(moved)
    return replace(entry, shards=shards)


def _bring(here: Path, there: Path, seal: str) -> None:
    """Copy a shard to its place, unless it is there, and verify it."""
    if read_seal(here, SHARD_FORMAT) != seal or not seal_holds(here, SHARD_FORMAT):
        message = (
            f"{here} is damaged or another shard than its index names; make it again, then merge"
        )
        raise StoreError(message, path=here)
    if not (there.exists() and there.samefile(here)):
        with atomic_file(there) as temporary:
            shutil.copyfile(here, temporary)

"""Merging of stores: the parts of a job array, or other teachers or splits of the same data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.files import FolderLock, atomic_file
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    SHARD_FORMAT,
    ChecksumError,
    read_seal,
    seal_holds,
)
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.schema import check_index_path, shard_folder, shard_name
from cusa.data.store.teacher_entry import TeacherEntry

_THREADS = 4
_SHOWN_GAPS = 3


@dataclass(frozen=True)
class _Move:
    """A shard's source, its path in the joined store, and the seal that it must carry."""

    source: Path
    target: Path
    seal: str


def merge(out: Path, store_parts: Sequence[Path]) -> Index:
    """Join stores into one.

    Every shard's checksum is verified, and shards outside the shard folder of ``out`` are copied
    there.

    Args:
        out: Path of the joined index; if it exists, it is joined, too.
        store_parts: Indexes to join, of complete stores or of parts.

    Returns:
        The joined index.

    Raises:
        StoreError: If data or settings differ, two parts have different shards of the same rows, or
            rows are missing from all of them; says which.
        LockedError: If another run is working on the store.
    """
    sources = [path for path in store_parts if path.resolve() != out.resolve()]
    if out.exists():
        sources.insert(0, out)
    if not sources:
        raise StoreError("nothing to join; name the parts", path=out)
    check_index_path(out)
    for source in sources:
        read_seal(source, INDEX_FORMAT)  # refuse other files before a folder is created

    with FolderLock(shard_folder(out)):
        joined, moves = _join(out, sources)
        if not joined.teachers:
            raise StoreError(
                f"{sources[0]} has the texts of a store in parts, without rows of a teacher; name "
                "its parts, too (NAME.part-A-B-DIGEST.h5)",
                path=sources[0],
            )
        gaps = joined.gaps()
        if gaps:
            raise StoreError(
                f"the parts do not make a complete store: {'; '.join(gaps[:_SHOWN_GAPS])} "
                f"({len(gaps)} in all)",
                path=out,
                location=gaps[0],
            )
        # Threads help, as hashing and copying release Python's global lock.
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(_move_shard, moves))
        write_index(out, joined)
        return joined


def _join(out: Path, sources: Sequence[Path]) -> tuple[Index, list[_Move]]:
    """Join indexes; return the joined one, with the shards' new paths, and the moves needed."""
    joined: Index | None = None
    # By the shard's file in the joined store.
    moves: dict[str, _Move] = {}
    for source in sources:
        index = read_index(source)
        label = f"{source} cannot be joined: {sources[0]}"
        if joined is not None:
            # Differing data or settings would explain differing shards, so report them first.
            joined.joined(index, label)
        teachers = {}
        for teacher_name, entry in index.teachers.items():
            teachers[teacher_name] = _moved_entry(
                out,
                source,
                teacher_name,
                entry,
                moves,
            )
        index = replace(index, teachers=teachers)
        if joined is not None:
            index = joined.joined(index, label)
        joined = index
    assert joined is not None, "there is at least one source"
    return joined, list(moves.values())


def _moved_entry(
    out: Path,
    source: Path,
    teacher_name: str,
    entry: TeacherEntry,
    moves: dict[str, _Move],
) -> TeacherEntry:
    """Return a teacher's entry with its shards' new paths, and add their moves."""
    shards = {}
    for split_name, infos in entry.shards.items():
        moved_infos = []
        for info in infos:
            relative_path = shard_name(teacher_name, split_name, info.start, info.stop)
            shard_file = f"{shard_folder(out).name}/{relative_path}"
            move = _Move(source.parent / info.file, out.parent / shard_file, info.sha256)
            # A shard that several parts have is copied only once.
            first_move = moves.setdefault(shard_file, move)
            if first_move.seal != move.seal:
                raise StoreError(
                    f"{move.source} and {first_move.source} hold different rows {info.start} to "
                    f"{info.stop} of teacher {teacher_name!r}, split {split_name!r}; leave one of "
                    "them out",
                    path=move.source,
                    name=teacher_name,
                )
            moved_infos.append(replace(info, file=shard_file))
        shards[split_name] = tuple(moved_infos)
    return replace(entry, shards=shards)


def _move_shard(move: _Move) -> None:
    """Verify a shard, and copy it to its new path unless it is there already."""
    is_named = read_seal(move.source, SHARD_FORMAT) == move.seal
    if not is_named or not seal_holds(move.source, SHARD_FORMAT):
        raise ChecksumError(
            f"{move.source} is damaged, or not the shard that its index names; make it again, then "
            "merge",
            path=move.source,
        )
    if move.target.exists() and move.target.samefile(move.source):
        return
    with atomic_file(move.target) as temporary:
        shutil.copyfile(move.source, temporary)

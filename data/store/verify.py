"""Verification of a store: every byte of its files against their checksums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.files import FolderLock
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    SHARD_FORMAT,
    VersionError,
    read_seal,
    seal_holds,
)
from cusa.data.store.index import Index, read_index
from cusa.data.store.schema import shard_folder
from cusa.data.store.shards import ShardHeader, ShardInfo, read_shard

_THREADS = 4


@dataclass(frozen=True)
class Damage:
    """A file that is damaged or missing, or an index with gaps.

    Attributes:
        path: The file.
        problem: What the file holds, and what is wrong with it.
    """

    path: Path
    problem: str


def verify(index: Path) -> tuple[int, list[Damage]]:
    """Read every file of a store and compare it with its checksum, and with the index.

    Args:
        index: The store's index.

    Returns:
        The number of files read, and the damages. If the index itself is damaged, every shard in
        its folder is checked on its own.

    Raises:
        StoreError: If there is no index, it has another major version, or it is damaged and there
            is no folder of shards.
    """
    if not index.is_file():
        raise StoreError(
            f"embedding store {index} does not exist or is a folder; pass the path of its index",
            path=index,
        )
    try:
        contents = read_index(index)
    except VersionError:
        raise
    except (StoreError, OSError) as error:
        if not shard_folder(index).is_dir():
            raise
        index_damage = Damage(index, f"the index: {error}")
    else:
        return _verify_named_shards(index, contents)

    # Without an index, it is unknown which shards there should be.
    n_shards, damages = _verify_all_shards(shard_folder(index))
    return 1 + n_shards, [index_damage, *damages]


def require_whole(index: Path) -> int:
    """Verify a store as :func:`verify` does, and refuse one that is damaged or has gaps.

    Returns:
        The number of its files.

    Raises:
        StoreError: If a file is damaged or missing.
    """
    n_files, damages = verify(index)
    if damages:
        raise StoreError(
            f"{len(damages)} of {n_files} files of {index} are damaged or missing "
            f"({damages[0].path}: {damages[0].problem}); see cusa-store verify",
            path=index,
        )
    return n_files


def _verify_all_shards(folder: Path) -> tuple[int, list[Damage]]:
    """Check every shard of a folder on its own, without an index."""
    paths = sorted(folder.glob("*/*.h5"))
    labels = [f"shard {path.name}" for path in paths]
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = threads.map(file_problem, paths, repeat(SHARD_FORMAT))
        return len(paths), _damages(paths, labels, problems)


def _verify_named_shards(index: Path, contents: Index) -> tuple[int, list[Damage]]:
    """Check the shards that an intact index names."""
    headers = []
    infos = []
    paths = []
    labels = []
    for header, info in _named_shards(contents):
        headers.append(header)
        infos.append(info)
        paths.append(index.parent / info.file)
        labels.append(
            f"teacher {header.teacher!r}, split {header.split!r}, rows {info.start} to {info.stop}"
        )
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = threads.map(_named_shard_problem, repeat(index.parent), headers, infos)
        damages = _damages(paths, labels, problems)
    damages.extend(Damage(index, gap) for gap in contents.gaps())
    return 1 + len(infos), damages


def _damages(
    paths: Sequence[Path], labels: Sequence[str], problems: Iterable[str | None]
) -> list[Damage]:
    """Return a damage for each file with a problem."""
    damages = []
    for path, label, problem in zip(paths, labels, problems, strict=True):
        if problem is not None:
            damages.append(Damage(path, f"{label}: {problem}"))
    return damages


def _named_shards(contents: Index) -> Iterator[tuple[ShardHeader, ShardInfo]]:
    """Yield the header that each shard must have, and its entry in the index."""
    for teacher_name, entry in contents.teachers.items():
        for split_name, shards in entry.shards.items():
            for info in shards:
                header = ShardHeader(
                    teacher=teacher_name,
                    split=split_name,
                    fingerprint=contents.splits[split_name].fingerprint,
                    start=info.start,
                    stop=info.stop,
                    settings=entry.settings,
                )
                yield header, info


def file_problem(
    path: Path,
    file_format: str,
    seal: str | None = None,
) -> str | None:
    """Describe what is wrong with a file's bytes or seal; ``None`` if nothing is."""
    try:
        if seal is not None and read_seal(path, file_format) != seal:
            return "the file is not the shard that the index names"
        if not seal_holds(path, file_format):
            return "its checksum does not hold"
    except StoreError as error:
        return str(error)
    except OSError as error:  # such as a bad sector
        return f"it cannot be read ({error.strerror})"
    return None


def _named_shard_problem(
    folder: Path,
    header: ShardHeader,
    info: ShardInfo,
) -> str | None:
    """Describe what is wrong with a shard named in an index; ``None`` if nothing is."""
    problem = file_problem(folder / info.file, SHARD_FORMAT, info.sha256)
    if problem is not None:
        return problem
    try:
        stored_header, stored_info = read_shard(folder, info.file, is_verified=True)
    except StoreError as error:
        return str(error)

    differences = header.differences(stored_header)
    if (stored_info.offset, stored_info.skipped) != (info.offset, info.skipped):
        differences.append("offset or skipped rows")
    if not differences:
        return None
    return f"it holds other rows than the index says: {'; '.join(differences)}"


def set_aside(index: Path, damages: list[Damage]) -> list[Path]:
    """Rename damaged files to ``NAME.damaged``, so that the next precompute makes them again.

    Args:
        index: The store's index; it is renamed only if its own bytes are damaged.
        damages: The damages that :func:`verify` returned.

    Returns:
        The files' new paths.

    Raises:
        LockedError: If a run is working on the store.
    """
    moved = []
    with FolderLock(shard_folder(index)):
        # Several damages may name the same file.
        for path in dict.fromkeys(damage.path for damage in damages):
            if not path.exists():
                continue
            # A gap is a damage that names the index, although its own bytes are intact.
            if path == index and file_problem(index, INDEX_FORMAT) is None:
                continue
            moved.append(path.rename(path.with_name(f"{path.name}.damaged")))
    return moved

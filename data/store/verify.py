"""Checking a store: every byte of its files against the checksums that they carry."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.files import FolderLock
from cusa.data.store.checksum import INDEX_FORMAT, SHARD_FORMAT, VersionError, read_seal, seal_holds
from cusa.data.store.index import Index, read_index
from cusa.data.store.schema import shard_folder
from cusa.data.store.shards import ShardHeader, ShardInfo, read_shard

_THREADS = 4


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written.

    Attributes:
        path: The file.
        what: What it holds, and what is wrong with it.
    """

    path: Path
    what: str


def verify(index: Path) -> tuple[int, list[Damage]]:
    """Read every file of a store and compare it with its checksum, and the shards with those that the index names.

    Args:
        index: The store's index.

    Returns:
        Number of files read, and what is damaged or missing. Where the index itself is damaged, all shards of its
        folder are checked by themselves.

    Raises:
        StoreError: If there is no index, or what is there was never one: of another version, or
            without shards.
    """
    if not index.is_file():
        message = (
            f"embedding store {index} does not exist or is a folder; pass the path of its index"
        )
        raise StoreError(message, path=index)
    try:
        found = read_index(index)
    except VersionError:
        raise
    except (StoreError, OSError) as error:
        if not shard_folder(index).is_dir():
            raise
        problem = f"the index: {error}"
    else:
        return _verify_shards(index, found)
    shards = sorted(shard_folder(index).glob("*/*.h5"))
    with ThreadPoolExecutor(_THREADS) as pool:
        wrong = list(pool.map(lambda path: _wrong(path, SHARD_FORMAT), shards))
    damages = [
        Damage(p, f"shard {p.name}: {what}") for p, what in zip(shards, wrong, strict=True) if what
    ]
    return 1 + len(shards), [Damage(index, problem), *damages]


def _verify_shards(index: Path, found: Index) -> tuple[int, list[Damage]]:
    """The shards that a whole index names."""
    places = list(_shards(found))
    with ThreadPoolExecutor(_THREADS) as pool:
        wrong = list(pool.map(lambda place: _wrong_shard(index.parent, found, *place), places))
    damages = []
    for (teacher, split, info), what in zip(places, wrong, strict=True):
        if what:
            rows = f"teacher {teacher!r}, split {split!r}, rows {info.start} to {info.stop}"
            damages.append(Damage(index.parent / info.file, f"{rows}: {what}"))
    return 1 + len(places), damages + [Damage(index, gap) for gap in found.gaps()]


def _shards(index: Index) -> Iterator[tuple[str, str, ShardInfo]]:
    for teacher, entry in index.teachers.items():
        for split, shards in entry.shards.items():
            for info in shards:
                yield teacher, split, info


def _wrong(path: Path, form: str, seal: str | None = None) -> str | None:
    try:
        if seal not in (None, read_seal(path, form)):
            return "the file is another shard than the index names"
        return None if seal_holds(path, form) else "its checksum does not hold"
    except StoreError as error:
        return str(error)
    except OSError as error:  # such as a bad sector
        return f"it cannot be read ({error.strerror})"


def _wrong_shard(
    folder: Path, index: Index, teacher: str, split: str, info: ShardInfo
) -> str | None:
    """What is wrong with a shard that an index names, if anything."""
    if what := _wrong(folder / info.file, SHARD_FORMAT, info.sha256):
        return what
    try:
        header, found = read_shard(folder, info.file, is_verified=True)
    except StoreError as error:
        return str(error)
    settings, fingerprint = index.teachers[teacher].settings, index.splits[split].fingerprint
    fields = ShardHeader(teacher, split, fingerprint, info.start, info.stop, settings).differing(
        header
    )
    if (found.offset, found.skipped) != (info.offset, info.skipped):
        fields.append("offset or skipped rows")
    return f"it holds other rows than the index says: {'; '.join(fields)}" if fields else None


def set_aside(index: Path, damages: list[Damage]) -> list[Path]:
    """Rename damaged files to ``NAME.damaged``, so that the next precompute makes exactly those again.

    Args:
        index: The store's index; it is renamed, too, only if it is damaged itself.
        damages: What :func:`verify` found.

    Returns:
        The files' new paths.

    Raises:
        StoreError: If a run is working on the store.
    """
    moved = []
    with FolderLock(shard_folder(index)):
        for path in dict.fromkeys(damage.path for damage in damages):
            if path.exists() and not (path == index and _wrong(index, INDEX_FORMAT) is None):
                moved.append(path.rename(path.with_name(f"{path.name}.damaged")))
    return moved

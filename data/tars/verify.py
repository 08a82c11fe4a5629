"""Verification of a tar set: every byte of its files against their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cusa.data.errors import StoreError
from cusa.data.objects.folder import is_remote
from cusa.data.store.checksum import SHARD_FORMAT, VersionError
from cusa.data.store.verify import Damage, file_problem
from cusa.data.tars.each_file import SetReader, read_each
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.named_files import NamedFiles
from cusa.data.tars.pair_files import PAIRS_FORMAT
from cusa.data.tars.set_files import PAIRS_FOLDER, SetFiles


@dataclass(frozen=True)
class _SealedFile:
    """A file of a set, its format, and the seal that it must carry, if a manifest says so."""

    path: Path
    file_format: str
    seal: str | None = None


def holds_set(path: Path) -> bool:
    """Return whether a path is a folder with a set's manifest or its pairs, or a URL."""
    return is_remote(path) or (path / MANIFEST).is_file() or (path / PAIRS_FOLDER).is_dir()


def verify_set(
    folder: Path,
    processes: int = 1,
) -> tuple[int, list[Damage]]:
    """Read every file of a tar set and compare it with its checksum, and with the manifest.

    Args:
        folder: Path or URL of the folder of the set. Of an object store, some files are fetched at
            a time.
        processes: Number of processes that read; 1: threads of this one.

    Returns:
        The number of files read, and the damages. If the manifest itself is damaged or missing,
        every file in the folder is checked on its own.

    Raises:
        StoreError: If the folder is not that of a set, or the manifest has another major version.
    """
    damages: list[Damage] = []
    files = SetFiles(folder)
    folder = files.path
    try:
        sealed_files = list(_named_files(NamedFiles(folder)))
    except VersionError:
        raise
    except StoreError as error:
        sealed_files = list(_listed_files(files))
        if not sealed_files:
            raise
        damages.append(Damage(folder / MANIFEST, f"the manifest: {error}"))
    problems = read_each(folder, _ProblemFinder(folder), sealed_files, processes, parses=False)
    for sealed_file, problem in zip(sealed_files, problems, strict=True):
        if problem is not None:
            damages.append(Damage(sealed_file.path, problem))
    return 1 + len(sealed_files), damages


def _listed_files(files: SetFiles) -> Iterator[_SealedFile]:
    """Yield the files in the folder of a set, which no manifest names."""
    for name in sorted(files.listing):
        if name.startswith(f"{PAIRS_FOLDER}/"):
            yield _SealedFile(files.path / name, PAIRS_FORMAT)
        else:
            yield _SealedFile(files.path / name, SHARD_FORMAT)


def _named_files(files: NamedFiles) -> Iterator[_SealedFile]:
    """Yield the files that a manifest names."""
    for tar in files.manifest.names:
        yield _SealedFile(files.pairs_path(tar), PAIRS_FORMAT, files.pairs_seal(tar))
        for teacher in files.manifest.teachers:
            path = files.rows_path(teacher, tar)
            yield _SealedFile(path, SHARD_FORMAT, files.rows_seal(teacher, tar))


class _ProblemFinder(SetReader):
    """Returns the problem of a sealed file, or ``None``."""

    def __getitem__(self, sealed_file: _SealedFile) -> str | None:
        name = f"{sealed_file.path.parent.name}/{sealed_file.path.name}"
        with self.files.on_disk([name]) as folder:
            problem = file_problem(folder / name, sealed_file.file_format, sealed_file.seal)
        if problem is None:
            return None
        # A file that was fetched is called by its URL.
        return problem.replace(str(folder), str(self.files))


def set_aside_in_set(damages: Sequence[Damage]) -> list[Path]:
    """Rename damaged files to ``NAME.damaged``, so that the next precompute makes them again.

    Args:
        damages: The damages that :func:`verify_set` returned.

    Returns:
        The files' new paths.
    """
    moved: list[Path] = []
    for damage in damages:
        path = damage.path
        if path.exists():
            new_path = path.with_name(f"{path.name}.damaged")
            moved.append(path.rename(new_path))
    return moved

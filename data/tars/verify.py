"""Verification of a tar set: every byte of its files against their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cusa.data.store.checksum import SHARD_FORMAT
from cusa.data.store.schema import file_name
from cusa.data.store.verify import Damage, file_problem
from cusa.data.tars.manifest import MANIFEST, SET_FORMAT, Manifest, read_manifest
from cusa.data.tars.pair_files import PAIRS_FORMAT, pairs_path

_THREADS = 4


@dataclass(frozen=True)
class _SealedFile:
    """A file of a set, its format, and the seal that it must carry."""

    path: Path
    file_format: str
    seal: str


def verify_set(folder: Path) -> tuple[int, list[Damage]]:
    """Read every file of a tar set and compare it with its checksum, and with the manifest.

    Args:
        folder: The folder of the set.

    Returns:
        The number of files read, and the damages.

    Raises:
        StoreError: If there is no manifest.
    """
    manifest_path = folder / MANIFEST
    problem = file_problem(manifest_path, SET_FORMAT)
    if manifest_path.is_file() and problem is not None:
        return 1, [Damage(manifest_path, f"the manifest: {problem}")]
    manifest = read_manifest(folder)
    damages: list[Damage] = []
    n_files = 1
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = threads.map(_problem, _sealed_files(folder, manifest))
        for sealed_file, problem in zip(_sealed_files(folder, manifest), problems, strict=True):
            n_files += 1
            if problem is not None:
                damages.append(Damage(sealed_file.path, problem))
    return n_files, damages


def _sealed_files(
    folder: Path,
    manifest: Manifest,
) -> Iterator[_SealedFile]:
    """Yield the files that a manifest names."""
    for number, tar in enumerate(manifest.names):
        seal = manifest.pair_seals[number].tobytes().hex()
        yield _SealedFile(pairs_path(folder, tar), PAIRS_FORMAT, seal)
        for teacher_name, rows in manifest.teachers.items():
            path = folder / file_name(teacher_name) / f"{tar}.h5"
            seal = rows.seals[number].tobytes().hex()
            yield _SealedFile(path, SHARD_FORMAT, seal)


def _problem(sealed_file: _SealedFile) -> str | None:
    return file_problem(
        sealed_file.path,
        sealed_file.file_format,
        sealed_file.seal,
    )


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

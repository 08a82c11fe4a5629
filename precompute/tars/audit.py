"""The audit of a tar set: its teachers run again on a few rows of a few tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cusa.data.errors import SettingError, StoreError
from cusa.data.objects.folder import split_file
from cusa.data.tars.pairs import TarPairs, name_of_tar
from cusa.data.tars.parquet import read_pairs_of_unit
from cusa.data.tars.set_files import PAIRS_FOLDER, SetFiles
from cusa.data.tars.tar_set import TarSet
from cusa.precompute.audit import (
    Audit,
    RecordedTeacher,
    choose_rows,
    compare,
    load_recorded_teacher,
)
from cusa.precompute.tars.parquet_images import images_of
from cusa.precompute.tars.stored import other_tar

# Each is read as a whole, for its sha256.
MOST_TARS = 16


def audit_set(
    tar_set: TarSet,
    tars: Sequence[Path],
    sources: Mapping[str, str],
    sample: int,
    seed: int,
    device: str,
) -> list[Audit]:
    """Embed random rows of at most 16 random tars again and compare them with the stored ones.

    The tars have to be those that the pairs were read from.

    Args:
        tar_set: The set.
        tars: The tars, or some of them.
        sources: The teachers by name, and where to load each from.
        sample: Number of rows to compare for each teacher, over all tars.
        seed: Seed of the random choice of tars and rows.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        TarError: If a tar is missing, or is not the one that its rows were made of.
        CusaError: If the set has no such teacher or none of the tars, or the teacher cannot be
            loaded or is of another modality or dimension.
    """
    for teacher_name in sources:
        if teacher_name not in tar_set.teachers:
            raise StoreError(
                f"{tar_set.files} has no teacher {teacher_name!r}; it has: "
                f"{', '.join(tar_set.teachers)}",
                path=tar_set.path,
                name=teacher_name,
            )
    with ExitStack() as copies:
        all_pairs: list[TarPairs] = []
        for tar in _choose_tars(tar_set, tars, seed):
            all_pairs.append(_read_unchanged(tar_set, tar, copies))

        # At least a row of each tar.
        rows_per_tar = -(-sample // len(all_pairs))
        audits: list[Audit] = []
        for teacher_name, source in sources.items():
            stored_settings = tar_set.teachers[teacher_name]
            recorded = load_recorded_teacher(teacher_name, stored_settings, source, device)
            for tar_pairs in all_pairs:
                audits += _audit_tar(tar_set, recorded, tar_pairs, rows_per_tar, seed)
        return audits


def _read_unchanged(
    tar_set: TarSet,
    tar: Path,
    copies: ExitStack,
) -> TarPairs:
    """Read the pairs of a tar, which must be the one that its stored pairs were read from.

    A tar of an object store is fetched, and stays until the stack of copies is closed.
    """
    folder, tar_file = split_file(tar)
    tar_folder = copies.enter_context(SetFiles(folder).on_disk([tar_file]))
    tar_pairs = read_pairs_of_unit(tar_folder / tar_file, tar_set.manifest.caption_rule, True)
    if tar_set.pairs(tar_pairs.name).tar_sha256 != tar_pairs.sha256:
        raise other_tar(tar_pairs, f"{tar_set.files}/{PAIRS_FOLDER}/{tar_pairs.name}.h5")
    return tar_pairs


def _choose_tars(
    tar_set: TarSet,
    tars: Sequence[Path],
    seed: int,
) -> list[Path]:
    names = set(tar_set.manifest.names)
    candidates: list[Path] = []
    for path in tars:
        if name_of_tar(path) in names:
            candidates.append(path)
    if not candidates:
        raise SettingError(
            f"--dataset names no tar of {tar_set.files}; pass the tars that its rows were made of",
            path=tar_set.path,
            name="dataset",
        )
    rng = np.random.default_rng(seed)
    n_chosen = min(MOST_TARS, len(candidates))
    numbers = rng.choice(len(candidates), n_chosen, replace=False, shuffle=False)
    return [candidates[number] for number in np.sort(numbers)]


def _audit_tar(
    tar_set: TarSet,
    recorded: RecordedTeacher,
    tar_pairs: TarPairs,
    sample: int,
    seed: int,
) -> list[Audit]:
    """Compare rows of a tar; a tar without rows has no audit."""
    stored_rows = tar_set.rows(recorded.name, tar_pairs.name)
    skipped = np.flatnonzero(np.isnan(stored_rows).any(axis=1))
    rows = choose_rows(len(stored_rows), skipped, sample, seed)
    if not len(rows):
        return []
    new_rows = _embed(recorded, tar_pairs, rows.tolist())
    chosen_rows = stored_rows[rows].astype(np.float32)
    return [compare(recorded, tar_pairs.name, rows, chosen_rows, new_rows)]


def _embed(
    recorded: RecordedTeacher,
    tar_pairs: TarPairs,
    rows: Sequence[int],
) -> np.ndarray:
    """Embed the items of some rows of a tar: float32 ``[len(rows), dim]``, L2-normalised."""
    if recorded.teacher.modality == "image":
        images = images_of([tar_pairs])
        name = tar_pairs.name
        return recorded.embed_images(
            (images.path(name, row), images.read(name, row)) for row in rows
        )
    captions = tar_pairs.records.captions
    caption_ids = tar_pairs.records.caption_ids
    return recorded.embed_captions([(captions[row], caption_ids[row]) for row in rows])

"""What the folder of a set holds from earlier runs, and whether a run may go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import SHARD_FORMAT, read_seal
from cusa.data.store.schema import TeacherSettings, file_name
from cusa.data.store.shards import ShardInfo, read_picture_digests, read_shard
from cusa.data.tars.manifest_building import first_file
from cusa.data.tars.pair_files import pairs_path, read_pairs
from cusa.data.tars.pairs import TarPairs
from cusa.data.tars.samples import TarError
from cusa.data.tars.set_files import PAIRS_FOLDER
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.tars.block import TarBlock
from cusa.precompute.teacher_loading import LoadedTeacher


def settings_of_teacher(
    folder: Path,
    teacher_name: str,
) -> TeacherSettings | None:
    """Return the settings of a teacher's rows of the first tar that has some."""
    shard_path = first_file(folder / file_name(teacher_name))
    if shard_path is None:
        return None
    header, _ = read_shard(folder, str(shard_path.relative_to(folder)))
    return header.settings


def require_settings(
    folder: Path,
    teacher_name: str,
    loaded: LoadedTeacher,
    stored_settings: TeacherSettings,
) -> None:
    """Refuse a teacher whose stored rows were made with other settings.

    Raises:
        StoreError: If they were.
    """
    differences = loaded.settings.differences(stored_settings)
    if differences:
        raise StoreError(
            f"{folder} has rows of teacher {teacher_name!r} that were made with other settings: "
            f"{'; '.join(differences)}; pass another --out",
            path=folder,
            name=teacher_name,
        )


def require_caption_rule(
    folder: Path,
    caption_rule: str,
) -> None:
    """Refuse another caption rule than that of the first finished tar.

    Raises:
        StoreError: If it is another one.
    """
    path = first_file(folder / PAIRS_FOLDER)
    if path is None:
        return
    stored_rule = read_pairs(path).caption_rule
    if stored_rule != caption_rule:
        raise StoreError(
            f"{folder} has rows whose captions were read with --caption {stored_rule}, not "
            f"{caption_rule}; pass that, or another --out",
            path=folder,
            name="caption",
        )


def require_unchanged_tar(
    folder: Path,
    tar_pairs: TarPairs,
) -> None:
    """Refuse a tar that is not the one that its stored pairs were read from.

    Raises:
        TarError: If it is not.
    """
    path = pairs_path(folder, tar_pairs.name)
    if path.exists() and read_pairs(path).tar_sha256 != tar_pairs.sha256:
        raise other_tar(tar_pairs, str(path))


def other_tar(
    tar_pairs: TarPairs,
    pairs_location: str,
) -> TarError:
    """Return the error of a tar that is not the one that its stored pairs were read from."""
    return TarError(
        f"{tar_pairs.path} is not the tar that {pairs_location} was made from; pass another --out, "
        f"or move the files of {tar_pairs.name} away",
        path=tar_pairs.path,
        name=tar_pairs.name,
    )


def without_replaced_tars(
    finished: Mapping[ShardTask, ShardInfo],
    block: TarBlock,
) -> dict[ShardTask, ShardInfo]:
    """Return the rows of an image teacher that are of the tars as they are now.

    Rows without pairs are those of a run that was killed between the two. The tar may have been
    replaced by another one since, of the same keys and captions.
    """
    still_finished: dict[ShardTask, ShardInfo] = {}
    for task, info in finished.items():
        has_pairs = pairs_path(task.index.parent, task.split).exists()
        if has_pairs or _has_pictures_of(task, block):
            still_finished[task] = info
    return still_finished


def _has_pictures_of(
    task: ShardTask,
    block: TarBlock,
) -> bool:
    seal = read_seal(task.path, SHARD_FORMAT)
    stored_digests = read_picture_digests(task.path, seal)
    if stored_digests is None:
        return task.n_rows == 0
    return np.array_equal(stored_digests, block.images.digests(task.split))

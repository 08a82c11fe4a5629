"""A tar set, opened for the training of a student."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from cusa.data.errors import DataError, SettingError
from cusa.data.objects.folder import is_remote
from cusa.data.tars.cache import TarCache
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.units import is_parquet
from cusa.train.config import Config, DataConfig
from cusa.train.saving.provenance import Provenance
from cusa.train.tars.inputs import tar_inputs
from cusa.train.tars.pairs import TarSetPairs, rows_read
from cusa.train.tars.source import InPlace, TarSource
from cusa.train.tars.supply import TarSupply
from cusa.train.towers.processors import Processors

# Tars that are open beyond those of the streams' windows, as batches lie across two of them.
_MORE_OPEN = 2
_GIGABYTE = 10**9


def open_tar_pairs(
    tar_set: TarSet,
    config: Config,
    provenance: Provenance,
    processors: Processors,
) -> tuple[TarSetPairs, TarSupply]:
    """Open the trainable pairs of a set, and their supply with tars.

    Args:
        tar_set: The set.
        config: The run's settings, resolved.
        provenance: What the run uses of the set.
        processors: What makes the inputs of towers that are not stored.

    Raises:
        CusaError: If the folder of the tars is missing.
    """
    if processors.image is not None:
        _require_image_root(tar_set)
    every_teacher = tuple(tar_set.manifest.teachers)
    normalizer = config.data.normalizer
    inputs = tar_inputs(provenance.encoder_names, processors, normalizer, every_teacher)
    teachers = provenance.teachers.map(attrgetter("name"))
    teachers_read = rows_read(teachers, inputs)
    source = _source(tar_set, config.data, teachers_read, inputs.reads_images)
    n_at_once = config.data.window * config.data.streams
    pairs = TarSetPairs(source.files, inputs, teachers, n_at_once + _MORE_OPEN)
    tar_names = tuple(tar_set.manifest.names)
    supply = TarSupply(pairs, tar_names, source, n_at_once)
    return pairs, supply


def _source(
    tar_set: TarSet,
    data: DataConfig,
    teachers: tuple[str, ...],
    reads_images: bool,
) -> TarSource:
    """Return where batches read files from: the set and its tars, or copies of both."""
    locations = [tar_set.path]
    if reads_images and tar_set.image_root is not None:
        locations.append(tar_set.image_root)
    any_is_remote = any(map(is_remote, locations))
    if data.cache is None and not any_is_remote:
        return InPlace(tar_set, teachers, reads_images)
    folder = None
    if data.cache is not None:
        folder = Path(data.cache)
    n_bytes_kept = int(data.cache_gb * _GIGABYTE)
    return TarCache(tar_set, folder, n_bytes_kept, teachers, reads_images)


def _require_image_root(tar_set: TarSet) -> None:
    if is_parquet(tar_set.manifest.caption_rule):
        raise SettingError(
            f"{tar_set.path} was made from Parquet files, whose pictures have no place of their "
            "own to be read from; train --student adapter, or another whose image tower is stored, "
            "or make the set from tars",
            path=tar_set.path,
            name="student",
        )
    first_tar = tar_set.manifest.names[0]
    folder = tar_set.tar_path(first_tar).parent
    if not is_remote(folder) and not folder.is_dir():
        raise DataError(
            f"folder {folder} of the tars does not exist; pass --image-root",
            path=folder,
        )

"""A tar set, opened for the training of a student."""

from __future__ import annotations

from cusa.data.errors import DataError
from cusa.data.tars.tar_set import TarSet
from cusa.train.config import Config
from cusa.train.saving.provenance import Provenance
from cusa.train.student import Processors
from cusa.train.tars.inputs import StoredTarInputs, TarFileInputs, TarInputs
from cusa.train.tars.pairs import TarSetPairs
from cusa.train.tars.supply import InPlace, TarSupply

# Tars that are open beyond those of the streams' windows, as batches lie across two of them.
_MORE_OPEN = 2


def open_tar_pairs(
    tar_set: TarSet,
    config: Config,
    provenance: Provenance,
    processors: Processors | None,
) -> tuple[TarSetPairs, TarSupply]:
    """Open the trainable pairs of a set, and their supply with tars.

    Args:
        tar_set: The set.
        config: The run's settings, resolved.
        provenance: What the run uses of the set.
        processors: A Hugging Face student's processors; ``None`` for an adapter.

    Raises:
        CusaError: If the folder of the tars is missing.
    """
    inputs: TarInputs
    if processors is None:
        image, text = (encoder.name for encoder in provenance.encoders.values())
        inputs = StoredTarInputs(image, text)
    else:
        _require_image_root(tar_set)
        every_teacher = tuple(tar_set.manifest.teachers)
        inputs = TarFileInputs(processors, config.data.normalizer, every_teacher)
    teachers = [teacher.name for teacher in provenance.teachers.values()]
    n_at_once = config.data.window * config.data.streams
    pairs = TarSetPairs(tar_set, inputs, teachers, n_at_once + _MORE_OPEN)
    source = InPlace(tar_set, pairs.teachers_in_use, pairs.reads_images)
    return pairs, TarSupply(pairs, tuple(tar_set.manifest.names), source, n_at_once)


def _require_image_root(tar_set: TarSet) -> None:
    folder = tar_set.tar_path(tar_set.manifest.names[0]).parent
    if not folder.is_dir():
        raise DataError(
            f"folder {folder} of the tars does not exist; pass --image-root",
            path=folder,
        )

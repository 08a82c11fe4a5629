"""A split together with the reader of a student's inputs for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cusa.data.errors import DataError
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config
from cusa.train.student_inputs import (
    Captions,
    ImageFiles,
    StoredInputs,
    StudentInputs,
    TowerInputs,
)
from cusa.train.towers.processors import NO_PROCESSORS, Processors


class Sources(NamedTuple):
    """A split, and the reader of a student's inputs for it."""

    split: Split
    inputs: StudentInputs

    @property
    def lack_a_modality(self) -> bool:
        """Return whether the split has no image, or no caption, with an input."""
        no_image, no_text = self.inputs.missing()
        lacks_images = len(no_image) == self.split.n_images
        lacks_texts = len(no_text) == self.split.n_captions
        return lacks_images or lacks_texts


def student_sources(
    store: EmbeddingStore,
    split_name: str,
    config: Config,
    encoders: Mapping[str, str],
    processors: Processors = NO_PROCESSORS,
) -> Sources:
    """Open the readers of a student's inputs for one split.

    Args:
        store: The store.
        split_name: The split.
        config: The run's settings; the images are in ``data.image_root``.
        encoders: Names of the teachers whose rows are the inputs of stored towers, by ``"image"``
            and ``"text"``.
        processors: What makes the inputs of other towers.

    Raises:
        CusaError: If the split, an encoder's rows or the image folder is missing.
    """
    split = store.split(split_name)
    inputs: dict[str, TowerInputs] = {}
    for modality, encoder in encoders.items():
        inputs[modality] = StoredInputs(store.embeddings(encoder, split_name))
    no_image, no_text = store.skipped(split_name)
    if processors.image is not None:
        image_root = _image_root(store, config)
        inputs["image"] = ImageFiles(split, image_root, processors.image, no_image)
    if processors.text is not None:
        inputs["text"] = Captions(split, processors.text, config.data.normalizer, no_text)
    return Sources(split, StudentInputs(inputs["image"], inputs["text"]))


def _image_root(
    store: EmbeddingStore,
    config: Config,
) -> Path:
    image_root = store.image_root
    if config.data.image_root:
        image_root = Path(config.data.image_root)
    if not image_root.is_dir():
        raise DataError(
            f"image folder {image_root} does not exist; pass --image-root", path=image_root
        )
    return image_root


def validation_sources(
    store: EmbeddingStore,
    config: Config,
    encoders: Mapping[str, str],
    processors: Processors,
) -> Sources | None:
    """Open the readers of the validation split, if the run has one.

    Arguments are those of :func:`student_sources`; the store is that of ``data.val_embeddings`` if
    the run has one.

    Raises:
        CusaError: As in :func:`student_sources`, or if no image or no caption of the split can be
            read; raised before training, not after the first epoch.
    """
    split = config.data.val_split
    if split is None:
        return None
    if config.data.val_embeddings is not None:
        data = replace(config.data, image_root=config.data.val_image_root)
        config = replace(config, data=data)
    sources = student_sources(store, split, config, encoders, processors)
    if sources.lack_a_modality:
        raise DataError(
            f"split {split!r} has no image or no caption to validate on; name another with --set "
            "data.val_split=SPLIT, or none: --set data.val_split=null",
            name=split,
        )
    return sources

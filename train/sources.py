"""A split together with the reader of a student's inputs for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cusa.data.errors import DataError
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config
from cusa.train.student import Processors
from cusa.train.student_inputs import FileInputs, StoredInputs, StudentInputs


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
    encoders: tuple[str, ...],
    processors: Processors | None,
) -> Sources:
    """Open the readers of a student's inputs for one split.

    Args:
        store: The store.
        split_name: The split.
        config: The run's settings; the images are in ``data.image_root``.
        encoders: An adapter's image and text encoder, by name; empty for other students.
        processors: A Hugging Face student's processors; ``None`` for an adapter.

    Raises:
        CusaError: If the split, an encoder's rows or the image folder is missing.
    """
    split = store.split(split_name)
    if processors is None:
        image_encoder, text_encoder = encoders
        stored_images = store.embeddings(image_encoder, split_name)
        stored_texts = store.embeddings(text_encoder, split_name)
        return Sources(split, StoredInputs(stored_images, stored_texts))
    image_root = store.image_root
    if config.data.image_root:
        image_root = Path(config.data.image_root)
    if not image_root.is_dir():
        raise DataError(
            f"image folder {image_root} does not exist; pass --image-root", path=image_root
        )
    skipped = store.skipped(split_name)
    inputs = FileInputs(split, image_root, processors, config.data.normalizer, skipped)
    return Sources(split, inputs)


def validation_sources(
    store: EmbeddingStore,
    config: Config,
    encoders: tuple[str, ...],
    processors: Processors | None,
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

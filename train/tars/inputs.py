"""A student's inputs for a batch whose pairs are in several tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from cusa.data.captions import normalizer
from cusa.data.tars.open_tar import OpenTar
from cusa.train.student_inputs import Inputs, pixels_of_file
from cusa.train.towers.processors import ImagePreparation, Processors, Tokenization

Item = TypeVar("Item")


@dataclass(frozen=True)
class TarRows:
    """The pairs of a batch that are in one tar.

    Attributes:
        tar: The tar.
        positions: int64 ``[n]``, the places of the pairs in the batch.
        image_rows: int64 ``[n]``, the image row of each within the tar.
        caption_rows: int64 ``[n]``, the caption row of each within the tar.
    """

    tar: OpenTar
    positions: np.ndarray
    image_rows: np.ndarray
    caption_rows: np.ndarray


BatchRows = Sequence[TarRows]  # of all pairs of a batch, tar by tar


class TarTowerInputs(Protocol):
    """Reads a tower's inputs for a batch whose pairs are in several tars."""

    def read(
        self,
        rows: BatchRows,
    ) -> Inputs:
        """Read the inputs, in the order of the batch."""


@dataclass(frozen=True)
class TarInputs:
    """Reads a student's inputs for a batch whose pairs are in several tars.

    Attributes:
        image: Reads the image tower's inputs.
        text: Reads the text tower's inputs.
        teachers: Names of the teachers without whose rows a pair has no inputs.
        encoders: Names of the teachers whose rows are the inputs.
        reads_images: Whether pictures are read from the tars.
    """

    image: TarTowerInputs
    text: TarTowerInputs
    teachers: tuple[str, ...]
    encoders: tuple[str, ...]
    reads_images: bool


def tar_inputs(
    encoders: Mapping[str, str],
    processors: Processors,
    normalizer_name: str,
    every_teacher: tuple[str, ...],
) -> TarInputs:
    """Make the reader of a student's inputs.

    Args:
        encoders: Names of the teachers whose rows are the inputs of stored towers, by ``"image"``
            and ``"text"``.
        processors: What makes the inputs of other towers.
        normalizer_name: Name of the caption normaliser.
        every_teacher: All teachers of the set: of a student that reads pictures or captions, what
            one of them skipped is left out, as it is unreadable here, too.
    """
    readers: dict[str, TarTowerInputs] = {}
    if "image" in encoders:
        readers["image"] = StoredTarImages(encoders["image"])
    if "text" in encoders:
        readers["text"] = StoredTarTexts(encoders["text"])
    if processors.image is not None:
        readers["image"] = TarPictures(processors.image)
    if processors.text is not None:
        readers["text"] = TarCaptions(processors.text, normalizer_name)
    encoder_names = tuple(encoders.values())
    teachers = encoder_names
    if processors.read_files:
        teachers = every_teacher
    reads_images = processors.image is not None
    return TarInputs(readers["image"], readers["text"], teachers, encoder_names, reads_images)


@dataclass(frozen=True)
class StoredTarImages:
    """A stored image tower's inputs, so that no tar is read.

    Attributes:
        encoder: The encoder's name in the set.
    """

    encoder: str

    def read(
        self,
        rows: BatchRows,
    ) -> torch.Tensor:
        """Read float32 ``[B, dim]``."""
        return gathered_image_rows(rows, self.encoder).float()


@dataclass(frozen=True)
class StoredTarTexts:
    """A stored text tower's inputs.

    Attributes:
        encoder: The encoder's name in the set.
    """

    encoder: str

    def read(
        self,
        rows: BatchRows,
    ) -> torch.Tensor:
        """Read float32 ``[B, dim]``."""
        return gathered_caption_rows(rows, self.encoder).float()


@dataclass(frozen=True)
class TarPictures:
    """An image tower's inputs: pictures of the tars, decoded.

    Attributes:
        preparation: Preprocesses pictures.
    """

    preparation: ImagePreparation

    def read(
        self,
        rows: BatchRows,
    ) -> torch.Tensor:
        """Decode and preprocess pictures: float32 ``[B, 3, h, w]``.

        Raises:
            ImageError: If a picture cannot be decoded or preprocessed; names it as TAR/PATH.
            TarError: If a tar cannot be read, or has become shorter.
        """
        pixels: dict[int, torch.Tensor] = {}
        for rows_of_tar in rows:
            tar = rows_of_tar.tar
            positions = rows_of_tar.positions.tolist()
            image_rows = rows_of_tar.image_rows.tolist()
            for position, image_row in zip(positions, image_rows, strict=True):
                path = tar.image_path(image_row)
                content = tar.image(image_row)
                pixels[position] = pixels_of_file(self.preparation, path, content)
        return torch.cat(_in_order_of_batch(pixels))


@dataclass(frozen=True)
class TarCaptions:
    """A text tower's inputs: tokenised captions.

    Attributes:
        tokenization: Tokenises captions.
        normalizer_name: Name of the caption normaliser.
    """

    tokenization: Tokenization
    normalizer_name: str

    def read(
        self,
        rows: BatchRows,
    ) -> dict[str, torch.Tensor]:
        """Normalise and tokenise captions: int64 ``[B, length]`` by name of the model's input."""
        normalize = normalizer(self.normalizer_name)
        captions: dict[int, str] = {}
        for rows_of_tar in rows:
            positions = rows_of_tar.positions.tolist()
            tar_captions = rows_of_tar.tar.captions[rows_of_tar.caption_rows]
            for position, caption in zip(positions, tar_captions, strict=True):
                captions[position] = normalize(caption)
        return self.tokenization.tokens(_in_order_of_batch(captions))


def _in_order_of_batch(by_position: Mapping[int, Item]) -> list[Item]:
    return [by_position[position] for position in range(len(by_position))]


def gathered_image_rows(
    rows: BatchRows,
    teacher: str,
) -> torch.Tensor:
    """Gather an image teacher's rows for a batch: ``[B, dim]`` in the stored dtype."""
    image_rows = [rows_of_tar.image_rows for rows_of_tar in rows]
    return _gathered(rows, teacher, image_rows)


def gathered_caption_rows(
    rows: BatchRows,
    teacher: str,
) -> torch.Tensor:
    """Gather a text teacher's rows for a batch: ``[B, dim]`` in the stored dtype."""
    caption_rows = [rows_of_tar.caption_rows for rows_of_tar in rows]
    return _gathered(rows, teacher, caption_rows)


def _gathered(
    rows: BatchRows,
    teacher: str,
    stored_numbers: Sequence[np.ndarray],
) -> torch.Tensor:
    """Gather a teacher's rows with some numbers in each tar, in the order of the batch."""
    first_rows = rows[0].tar.rows(teacher)
    n_pairs = sum(map(len, stored_numbers))
    gathered = np.empty((n_pairs, first_rows.shape[1]), first_rows.dtype)
    for rows_of_tar, numbers in zip(rows, stored_numbers, strict=True):
        gathered[rows_of_tar.positions] = rows_of_tar.tar.rows(teacher)[numbers]
    return torch.from_numpy(gathered)

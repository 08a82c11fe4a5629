"""A student's inputs for a batch whose pairs are in several tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from cusa.data.captions import normalizer
from cusa.data.tars.open_tar import OpenTar
from cusa.train.student import Processors
from cusa.train.student_inputs import Inputs, pixels_of_file

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


class TarInputs(Protocol):
    """Reads a student's inputs for a batch whose pairs are in several tars."""

    @property
    def teachers(self) -> Sequence[str]:
        """Return the names of the teachers without whose rows a pair has no inputs."""

    @property
    def encoders(self) -> Sequence[str]:
        """Return the names of the teachers whose rows are the inputs."""

    @property
    def reads_images(self) -> bool:
        """Return whether pictures are read from the tars."""

    def images(
        self,
        rows: BatchRows,
    ) -> Inputs:
        """Read the image trunk's inputs, in the order of the batch."""

    def texts(
        self,
        rows: BatchRows,
    ) -> Inputs:
        """Read the text trunk's inputs, in the order of the batch."""


@dataclass(frozen=True)
class StoredTarInputs:
    """The adapter's inputs: rows of two encoders, so that no tar is read.

    Attributes:
        image_encoder: The image encoder's name in the set.
        text_encoder: The text encoder's name in the set.
    """

    image_encoder: str
    text_encoder: str
    reads_images = False

    @property
    def encoders(self) -> tuple[str, str]:
        """Return the names of both encoders."""
        return self.image_encoder, self.text_encoder

    @property
    def teachers(self) -> tuple[str, str]:
        """Return the names of the encoders: a pair needs the rows of both."""
        return self.encoders

    def images(
        self,
        rows: BatchRows,
    ) -> torch.Tensor:
        """Read float32 ``[B, image_dim]``."""
        return gathered_image_rows(rows, self.image_encoder).float()

    def texts(
        self,
        rows: BatchRows,
    ) -> torch.Tensor:
        """Read float32 ``[B, text_dim]``."""
        return gathered_caption_rows(rows, self.text_encoder).float()


@dataclass(frozen=True)
class TarFileInputs:
    """A Hugging Face student's inputs: pictures of the tars, decoded, and tokenised captions.

    Attributes:
        processors: The student's image processor and tokeniser.
        normalizer_name: Name of the caption normaliser.
        teachers: All teachers of the set: what one of them skipped is unreadable here, too.
    """

    processors: Processors
    normalizer_name: str
    teachers: tuple[str, ...]
    encoders = ()
    reads_images = True

    def images(
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
                pixels[position] = pixels_of_file(self.processors, path, content)
        return torch.cat(_in_order_of_batch(pixels))

    def texts(
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
        return self.processors.tokens(_in_order_of_batch(captions))


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

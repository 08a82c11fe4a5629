"""A student's inputs, read by row of a split: stored embeddings, or image files and captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from cusa.data.captions import normalizer
from cusa.data.errors import ImageError, first_line
from cusa.data.images import load_image
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.train.student import Processors

Inputs = torch.Tensor | Mapping[str, torch.Tensor]


class StudentInputs(Protocol):
    """Reads a student's inputs by row of a split."""

    def images(self, rows: np.ndarray) -> Inputs:
        """Read the image trunk's inputs for int64 image rows ``[n]``."""

    def texts(self, rows: np.ndarray) -> Inputs:
        """Read the text trunk's inputs for int64 caption rows ``[n]``."""

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and the caption rows that have no input, int64 each."""


@dataclass(frozen=True)
class StoredInputs:
    """The adapter's inputs: embeddings of the store.

    Attributes:
        image_encoder: The image encoder's embeddings of the split.
        text_encoder: The text encoder's embeddings of the split.
    """

    image_encoder: Embeddings
    text_encoder: Embeddings

    def __post_init__(self) -> None:
        """Refuse missing shards now rather than in the middle of an epoch."""
        self.image_encoder.require_shards()
        self.text_encoder.require_shards()

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """Read float32 ``[n, image_dim]``."""
        stored_rows = self.image_encoder.gather(rows)
        return torch.from_numpy(stored_rows).float()

    def texts(self, rows: np.ndarray) -> torch.Tensor:
        """Read float32 ``[n, text_dim]``."""
        stored_rows = self.text_encoder.gather(rows)
        return torch.from_numpy(stored_rows).float()

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and the caption rows that ``cusa-precompute`` skipped."""
        return self.image_encoder.skipped, self.text_encoder.skipped


@dataclass(frozen=True)
class FileInputs:
    """A Hugging Face student's inputs: decoded image files and tokenised captions.

    Attributes:
        split: The split.
        image_root: Folder of the images.
        processors: The student's image processor and tokeniser.
        normalizer_name: Name of the caption normaliser.
        skipped: Rows of images and of captions that a teacher of the store could not read.
    """

    split: Split
    image_root: Path
    processors: Processors
    normalizer_name: str
    skipped: tuple[np.ndarray, np.ndarray]

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """Decode and preprocess images: float32 ``[n, 3, h, w]``.

        Raises:
            ImageError: If a file cannot be read or preprocessed.
        """
        pixels = []
        for row in rows.tolist():
            path = self.image_root / self.split.image_paths[row]
            pixels.append(pixels_of_file(self.processors, path))
        return torch.cat(pixels)

    def texts(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Normalise and tokenise captions: int64 ``[n, length]`` by name of the model's input."""
        normalize = normalizer(self.normalizer_name)
        captions = []
        for row in rows.tolist():
            caption = self.split.captions[row]
            captions.append(normalize(caption))
        return self.processors.tokens(captions)

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that any teacher of the store skipped: they are unreadable here, too."""
        return self.skipped


def pixels_of_file(
    processors: Processors,
    path: Path,
    content: bytes | None = None,
) -> torch.Tensor:
    """Decode and preprocess an image: float32 ``[1, 3, h, w]``.

    Args:
        processors: A student's processors.
        path: The file; errors name it.
        content: Its bytes, if they are not to be read from the path.

    Raises:
        ImageError: If it cannot be decoded or preprocessed.
    """
    image = load_image(path, content)
    try:
        return processors.pixels([image])
    except Exception as error:  # on odd sizes, image processors raise nearly anything
        raise ImageError(
            f"image {path} cannot be preprocessed ({first_line(error)}); replace or remove it",
            path=path,
        ) from None

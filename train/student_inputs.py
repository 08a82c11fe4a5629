"""A student's inputs, read by row of a split: stored rows, or image files and captions."""

from __future__ import annotations

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
from cusa.train.towers.processors import ImagePreparation, Tokenization
from cusa.train.towers.trunk import Inputs as Inputs


class TowerInputs(Protocol):
    """Reads a tower's inputs by row of a split."""

    @property
    def missing(self) -> np.ndarray:
        """Return the rows that have no input, int64."""

    def read(self, rows: np.ndarray) -> Inputs:
        """Read the inputs for int64 rows ``[n]``."""


@dataclass(frozen=True)
class StudentInputs:
    """Reads a student's inputs by row of a split.

    Attributes:
        image: Reads the image tower's inputs, by image row.
        text: Reads the text tower's inputs, by caption row.
    """

    image: TowerInputs
    text: TowerInputs

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and the caption rows that have no input, int64 each."""
        return self.image.missing, self.text.missing


@dataclass(frozen=True)
class StoredInputs:
    """A stored tower's inputs: rows of a teacher of the store.

    Attributes:
        embeddings: The teacher's embeddings of the split.
    """

    embeddings: Embeddings

    def __post_init__(self) -> None:
        """Refuse missing shards now rather than in the middle of an epoch."""
        self.embeddings.require_shards()

    @property
    def missing(self) -> np.ndarray:
        """Return the rows that ``cusa-precompute`` skipped."""
        return self.embeddings.skipped

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Read float32 ``[n, dim]``."""
        stored_rows = self.embeddings.gather(rows)
        return torch.from_numpy(stored_rows).float()


@dataclass(frozen=True)
class ImageFiles:
    """An image tower's inputs: decoded image files.

    Attributes:
        split: The split.
        image_root: Folder of the images.
        preparation: Preprocesses pictures.
        missing: Rows that a teacher of the store could not read: they are unreadable here, too.
    """

    split: Split
    image_root: Path
    preparation: ImagePreparation
    missing: np.ndarray

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Decode and preprocess images: float32 ``[n, 3, h, w]``.

        Raises:
            ImageError: If a file cannot be read or preprocessed.
        """
        pixels = []
        for row in rows.tolist():
            path = self.image_root / self.split.image_paths[row]
            pixels.append(pixels_of_file(self.preparation, path))
        return torch.cat(pixels)


@dataclass(frozen=True)
class Captions:
    """A text tower's inputs: tokenised captions.

    Attributes:
        split: The split.
        tokenization: Tokenises captions.
        normalizer_name: Name of the caption normaliser.
        missing: Rows that a teacher of the store could not read.
    """

    split: Split
    tokenization: Tokenization
    normalizer_name: str
    missing: np.ndarray

    def read(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Normalise and tokenise captions: int64 ``[n, length]`` by name of the model's input."""
        normalize = normalizer(self.normalizer_name)
        captions = []
        for row in rows.tolist():
            caption = self.split.captions[row]
            captions.append(normalize(caption))
        return self.tokenization.tokens(captions)


def pixels_of_file(
    preparation: ImagePreparation,
    path: Path,
    content: bytes | None = None,
) -> torch.Tensor:
    """Decode and preprocess an image: float32 ``[1, 3, h, w]``.

    Args:
        preparation: Preprocesses pictures.
        path: The file; errors name it.
        content: Its bytes, if they are not to be read from the path.

    Raises:
        ImageError: If it cannot be decoded or preprocessed.
    """
    image = load_image(path, content)
    try:
        return preparation.pixels([image])
    except Exception as error:  # on odd sizes, image processors raise nearly anything
        raise ImageError(
            f"image {path} cannot be preprocessed ({first_line(error)}); replace or remove it",
            path=path,
        ) from None

"""How pictures and captions become the inputs of a student's towers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from cusa.data.pretrained import processed
from cusa.data.tokenization import tokenized


class ImagePreparation(Protocol):
    """Preprocesses pictures; it is sent to worker processes."""

    def pixels(self, images: list[Any]) -> torch.Tensor:
        """Preprocess PIL images: float32 ``[n, 3, h, w]``.

        Raises:
            ImageError: If an image is too narrow to be resized.
        """


@dataclass(frozen=True)
class ImageProcessing:
    """Preprocesses pictures with an image processor of transformers.

    Attributes:
        image_processor: The image processor.
    """

    image_processor: Any

    def pixels(self, images: list[Any]) -> torch.Tensor:
        """Preprocess PIL images; see :meth:`ImagePreparation.pixels`."""
        pixels = processed(self.image_processor, images)["pixel_values"]
        return torch.from_numpy(np.asarray(pixels, np.float32))


@dataclass(frozen=True)
class ImageTransforming:
    """Preprocesses pictures with a function of one picture.

    Attributes:
        transform: Maps a PIL image to float32 ``[3, h, w]``.
    """

    transform: Callable[[Any], np.ndarray]

    def pixels(self, images: list[Any]) -> torch.Tensor:
        """Preprocess PIL images; see :meth:`ImagePreparation.pixels`."""
        pixels = [self.transform(image) for image in images]
        return torch.from_numpy(np.stack(pixels))


@dataclass(frozen=True)
class Tokenization:
    """Tokenises captions; it is sent to worker processes.

    Attributes:
        tokenizer: The tokeniser, of transformers; it has a padding token.
        max_length: The number of tokens that longer captions are cut to; ``None``: no caption is
            cut.
        padding: ``"longest"``, or ``"max_length"`` for models that attend to their padding.
    """

    tokenizer: Any
    max_length: int | None
    padding: str

    def tokens(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Tokenise captions: int64 ``[n, length]`` by name of the model's input."""
        return tokenized(self.tokenizer, captions, self.max_length, self.padding)


@dataclass(frozen=True)
class Processors:
    """What makes the inputs of both towers.

    Attributes:
        image: Preprocesses pictures; ``None``: the image tower's inputs are rows of the store.
        text: Tokenises captions; ``None``: the text tower's inputs are rows of the store.
    """

    image: ImagePreparation | None = None
    text: Tokenization | None = None

    @property
    def read_files(self) -> bool:
        """Return whether pictures or captions are read, not only rows."""
        return self.image is not None or self.text is not None


NO_PROCESSORS = Processors()  # both towers are stored

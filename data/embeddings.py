"""Embeddings of a split from both heads of a student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Head = Literal["cross", "uni"]
HEADS: tuple[Head, ...] = ("cross", "uni")
Rows = dict[Head, np.ndarray]


class SplitItems(Protocol):
    """The images and captions of a split that a model has embedded or scored."""

    @property
    def image_rows(self) -> np.ndarray:
        """Return the split's row of each image: int64 ``[n_images]``."""

    @property
    def text_rows(self) -> np.ndarray:
        """Return the split's row of each caption: int64 ``[n_captions]``."""

    @property
    def caption_image(self) -> np.ndarray:
        """Return the index of each caption's image, -1 for none: int64 ``[n_captions]``."""


@dataclass(frozen=True)
class SplitEmbeddings:
    """Embeddings of a split, L2-normalised float32.

    Attributes:
        image: Per head, ``[n_images, d]``.
        text: Per head, ``[n_captions, d]``.
        image_rows: int64 ``[n_images]``: the split's image row of each embedding; unreadable
            images have no embedding.
        text_rows: int64 ``[n_captions]``: the split's caption row of each embedding.
        caption_image: int64 ``[n_captions]``: index into the image embeddings, -1 where the
            caption's image has none.
    """

    image: dict[Head, np.ndarray]
    text: dict[Head, np.ndarray]
    image_rows: np.ndarray
    text_rows: np.ndarray
    caption_image: np.ndarray

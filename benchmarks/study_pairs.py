"""What a study trains on: a run's pairs with other rows for soft labels, or in another order.

Controls in place of the teachers' rows are as easy to fit but say less: what of a gain is knowledge
of the teachers, and what would any soft label give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from cusa.train.loader import Batch, EpochOrder, Pairs
from cusa.train.teacher_set import MaybeRows

# Whose rows a batch's soft labels are made of.
Labels = Literal["teachers", "constant", "random", "permuted"]
LABELS: tuple[Labels, ...] = get_args(Labels)
# Which of them are used: those of images, of captions, or of one modality in place of the other's.
Taught = Literal["both", "image", "text", "image twice", "text twice"]
TAUGHT: tuple[Taught, ...] = get_args(Taught)
CONTROL_DIM = 256
SHUFFLED = "shuffled"


class ControlledPairs(Dataset[Batch]):
    """The pairs of a run, with other rows in place of the teachers'.

    Random rows are drawn once for each image and each caption; permuted ones are the teachers'
    rows of another image and one of its captions, always the same.

    Args:
        pairs: The pairs.
        labels: Whose rows to use.
        taught: Which of them.
    """

    def __init__(self, pairs: Pairs, labels: Labels, taught: Taught) -> None:
        self._pairs = pairs
        self._labels = labels
        self._taught = taught
        self._image_rows, self._caption_rows = pairs.rows(np.arange(len(pairs)))
        if labels == "permuted":
            self._other_pairs = other_images_pairs(self._image_rows)
        generator = torch.Generator().manual_seed(0)
        self._random_rows = []
        for rows in (self._image_rows, self._caption_rows):
            size = int(rows.max()) + 1, CONTROL_DIM
            self._random_rows.append(torch.randn(size, generator=generator))

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        batch = self._pairs[numbers]
        image, text = self._rows(batch, np.asarray(numbers))
        chosen = {
            "both": (image, text),
            "image": (image, None),
            "text": (None, text),
            "image twice": (image, image),
            "text twice": (text, text),
        }
        teacher_image, teacher_text = chosen[self._taught]
        return replace(batch, teacher_image=teacher_image, teacher_text=teacher_text)

    def _rows(self, batch: Batch, numbers: np.ndarray) -> tuple[MaybeRows, MaybeRows]:
        """Return rows for the images and for the captions."""
        if self._labels == "constant":
            ones = torch.ones(len(numbers), CONTROL_DIM)
            return ones, ones
        if self._labels == "random":
            images, captions = self._random_rows
            return images[self._image_rows[numbers]], captions[self._caption_rows[numbers]]
        if self._labels == "permuted":
            batch = self._pairs[self._other_pairs[numbers]]
        return batch.teacher_image, batch.teacher_text


def other_images_pairs(image_rows: np.ndarray) -> np.ndarray:
    """Return for each pair one of another image: int64 ``[n]``; the same for pairs of one image.

    Args:
        image_rows: int64 ``[n]``: the image of each pair.
    """
    images, firsts, counts = np.unique(image_rows, return_index=True, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(images))
    # One cycle through all images, so that none stays itself.
    successor = np.empty_like(shuffled)
    successor[shuffled] = np.roll(shuffled, 1)
    position = np.searchsorted(images, image_rows)
    caption_number = np.arange(len(image_rows)) - firsts[position]
    other = successor[position]
    return firsts[other] + caption_number % counts[other]


@dataclass
class ImageOrder(EpochOrder):
    """An epoch's order in which captions of an image come together, or soon after each other.

    Attributes:
        image_rows: int64 ``[n_pairs]``: the image of each pair.
        kind: ``"together"``: k captions of an image side by side; ``"in turn"``: one caption of
            each of k images, then another of each, until all of theirs have come.
        k: Captions, or images.
    """

    image_rows: np.ndarray = field(kw_only=True)
    kind: str = field(kw_only=True)
    k: int = field(kw_only=True)

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(self.n_pairs)
        pairs = shuffled[np.argsort(self.image_rows[shuffled], kind="stable")]
        images = self.image_rows[pairs]
        counts = np.bincount(images)
        caption_number = np.arange(self.n_pairs) - (np.cumsum(counts) - counts)[images]
        if self.kind == "together":
            groups = images * (counts.max() + 1) + caption_number // self.k
            place = generator.permutation(groups.max() + 1)
            places = [place[groups]]
        else:
            place = generator.permutation(len(counts))[images]
            places = [place, caption_number, place // self.k]
        in_order = pairs[np.lexsort(places)]
        n_in_batches = len(self) * self.batch_size
        yield from in_order[:n_in_batches].reshape(len(self), -1)[self.first :]

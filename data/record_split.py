"""A split of a data set as columns, where there is no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cusa.data.records import Dataset, Truth


@dataclass(frozen=True)
class RecordSplit:
    """A split of a data set as columns, read from annotations instead of a store.

    Attributes:
        name: Split name.
        fingerprint: sha256 (hex) over ids, paths and captions.
        image_ids: Image ids, one per image row.
        image_paths: Image paths relative to the image root.
        caption_ids: Caption ids, one per caption row.
        captions: Captions as written.
        caption_image: int64 ``[n_captions]``: the image row of each caption.
        truth: Known relevance beyond the caption's own image, or ``None``.
    """

    name: str
    fingerprint: str
    image_ids: Sequence[str]
    image_paths: Sequence[str]
    caption_ids: Sequence[str]
    captions: Sequence[str]
    caption_image: np.ndarray
    truth: Truth | None

    @staticmethod
    def from_dataset(dataset: Dataset, name: str) -> RecordSplit:
        """Return a split of a data set by name.

        Raises:
            DataError: If the data set has no such split.
        """
        records = dataset.select([name]).splits[name]
        return RecordSplit(
            name=name,
            fingerprint=records.fingerprint,
            image_ids=records.image_ids,
            image_paths=records.image_paths,
            caption_ids=records.caption_ids,
            captions=records.captions,
            caption_image=records.caption_image,
            truth=dataset.truth.get(name),
        )

    @property
    def n_images(self) -> int:
        """Return the number of image rows."""
        return len(self.image_ids)

    @property
    def n_captions(self) -> int:
        """Return the number of caption rows."""
        return len(self.captions)

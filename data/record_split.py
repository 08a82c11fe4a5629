"""A split of a data set as columns, where there is no store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cusa.data.records import Dataset, Truth, caption_rows, fingerprint, text_columns


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
    image_ids: tuple[str, ...]
    image_paths: tuple[str, ...]
    caption_ids: tuple[str, ...]
    captions: tuple[str, ...]
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
            fingerprint=fingerprint(records),
            caption_image=caption_rows(records),
            truth=dataset.truth.get(name),
            **text_columns(records),
        )

    @property
    def n_images(self) -> int:
        """Return the number of image rows."""
        return len(self.image_ids)

    @property
    def n_captions(self) -> int:
        """Return the number of caption rows."""
        return len(self.captions)

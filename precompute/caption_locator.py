"""From the row of a caption to the caption itself."""

from __future__ import annotations

import numpy as np

from cusa.data.records import Dataset, Record, caption_rows


class CaptionLocator:
    """The captions of a data set, by the rows that they have in a store.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        # By split: the image's row of each caption, and the row of that image's first caption.
        self._image_rows: dict[str, np.ndarray] = {}
        self._first_caption_rows: dict[str, np.ndarray] = {}

    def record(self, split: str, row: int) -> tuple[Record, int]:
        """Return the record that a caption row belongs to, and the caption's number in it."""
        records = self._dataset.splits[split]
        if split not in self._first_caption_rows:
            image_rows = caption_rows(records)
            self._image_rows[split] = image_rows
            self._first_caption_rows[split] = np.searchsorted(image_rows, image_rows)
        image_row = self._image_rows[split][row]
        first_caption_row = int(self._first_caption_rows[split][row])
        return records[image_row], row - first_caption_row

    def caption(self, split: str, row: int) -> tuple[str, str]:
        """Return a caption, and its id."""
        record, number = self.record(split, row)
        return record.captions[number], record.caption_ids[number]

"""Lookup of captions by their row in a split."""

from __future__ import annotations

import numpy as np

from cusa.data.records import Dataset, Record, caption_rows


class CaptionLocator:
    """Finds the captions of a data set by their rows in a store.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        # By split: the image row of each caption, ascending.
        self._image_rows: dict[str, np.ndarray] = {}

    def record(
        self,
        split: str,
        row: int,
    ) -> tuple[Record, int]:
        """Return the record of a caption row, and the caption's number within it."""
        records = self._dataset.splits[split]
        if split not in self._image_rows:
            self._image_rows[split] = caption_rows(records)
        image_rows = self._image_rows[split]
        image_row = image_rows[row]
        return records[image_row], row - int(np.searchsorted(image_rows, image_row))

    def caption(
        self,
        split: str,
        row: int,
    ) -> tuple[str, str]:
        """Return the caption of a row, and the caption's id."""
        record, number = self.record(split, row)
        return record.captions[number], record.caption_ids[number]

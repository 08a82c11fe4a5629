"""An image with its captions."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Record:
    """An image with the captions that were written for it.

    Attributes:
        image_id: Stable id of the image, unique within the data set.
        image_path: Path of the image file relative to the data set's image root, with "/" as
            separator.
        captions: The captions as written, before any normalisation.
        caption_ids: Stable id of each caption, unique within the data set; same length as
            ``captions``.
        positions: Each caption's place in the annotation files
            (:func:`cusa.data.records.entry_location`); empty if the data set was not read from
            files.
    """

    image_id: str
    image_path: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...]
    positions: tuple[int, ...] = field(default=(), compare=False, repr=False)

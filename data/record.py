"""An image with its captions."""

from __future__ import annotations

from dataclasses import dataclass, field

from cusa.data.errors import DataError
from cusa.data.parsing import described


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


def require_legal(record: Record) -> None:
    """Refuse a record that cannot be stored.

    Raises:
        DataError: If it has more or fewer caption ids than captions, or a text that is no Unicode.
    """
    n_captions, n_ids = len(record.captions), len(record.caption_ids)
    if n_captions != n_ids:
        raise DataError(
            f"image {described(record.image_id)} has {n_captions} captions and {n_ids} ids of "
            "captions; give each caption one id",
            name=record.image_id,
        )
    texts = (record.image_id, record.image_path, *record.captions, *record.caption_ids)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"image {described(record.image_id)} has a text with half a character, a lone "
            "surrogate; repair it",
            name=record.image_id,
        ) from None

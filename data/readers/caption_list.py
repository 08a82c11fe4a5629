"""A json list of images with captions: ALBEF's ``[{image, caption}]`` or ``[{image_path, …}]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Form, Source

LOCATION_FORMAT = "entry {}"


def _read(content: list[Any], source: Source) -> Annotations:
    rows = _rows(content, source, source.required_split())
    return Annotations(source.path.stem, LOCATION_FORMAT, rows)


def _rows(
    content: list[Any],
    source: Source,
    split: str,
) -> Iterator[AnnotationRow]:
    for number, fields in enumerate(content):
        entry = Entry(fields, source.path, LOCATION_FORMAT.format(number))
        # ALBEF's files say image, others image_path.
        image_path = entry.text("image_path" if "image_path" in entry else "image")
        yield AnnotationRow(
            split=split,
            image_path=image_path,
            image_id=entry.identifier("image_id") or image_path,
            captions=entry.captions("caption"),
            caption_ids=(),
            number=number,
        )


FORM = Form(
    "a list [{image or image_path, caption[, image_id]}]",
    lambda content: isinstance(content, list),
    _read,
)

"""Karpathy's JSON for COCO and Flickr: ``{"images": [{filename, split, sentences}]}``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cusa.data.errors import FileFormatError
from cusa.data.readers.columns import refuse_columns
from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Form, Source, field_names

# Entries are counted from 0, as in the parsed list.
LOCATION_FORMAT = "images[{}]"
_ILLEGAL_CHARACTERS = set("/\\\0\n")  # in a data set's name


def _is_of_form(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    images = content.get("images")
    # COCO's own files also have images, but with annotations beside them, or none at all.
    if not isinstance(images, list) or "annotations" in content:
        return False
    fields = set(field_names(images[0])) if images else set()
    return "file_name" not in fields or "sentences" in fields


def _read(content: dict[str, Any], source: Source) -> Annotations:
    refuse_columns(source.columns, FORM.description, source.path)
    name = content.get("dataset", source.path.stem)
    if not isinstance(name, str) or not name or _ILLEGAL_CHARACTERS & set(name):
        raise FileFormatError(
            f"{source.path}: field 'dataset' must be a text that could be a file's name; correct "
            "or remove it",
            path=source.path,
            name="dataset",
        )
    return Annotations(name, LOCATION_FORMAT, _rows(content["images"], source))


def _rows(images: list[Any], source: Source) -> Iterator[AnnotationRow]:
    for number, fields in enumerate(images):
        image = Entry(fields, source.path, LOCATION_FORMAT.format(number))
        file_name = image.text("filename")
        # COCO's files name each image's folder; Flickr30k's do not.
        folder = image.optional_text("filepath")
        sentences = image.entries("sentences")
        yield AnnotationRow(
            split=source.split or image.split() or "train",
            image_path=f"{folder}/{file_name}" if folder else file_name,
            image_id=image.identifier("cocoid") or file_name,
            captions=tuple(sentence.caption("raw") for sentence in sentences),
            caption_ids=_caption_ids(sentences),
            number=number,
        )


def _caption_ids(sentences: Sequence[Entry]) -> tuple[str, ...]:
    """Return the ids of the sentences, or nothing if any sentence lacks one."""
    caption_ids = [sentence.identifier("sentid") for sentence in sentences]
    present_ids = tuple(filter(None, caption_ids))
    # If only some captions have ids, all of them are numbered per image instead.
    if len(present_ids) < len(sentences):
        return ()
    return present_ids


FORM = Form('Karpathy\'s {"images": [{filename, split, sentences}]}', _is_of_form, _read)

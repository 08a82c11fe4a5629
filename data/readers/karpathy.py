"""Karpathy's json, as for COCO and Flickr30k: ``{"images": [{filename, split, sentences}]}``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cusa.data.errors import FileFormatError
from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Form, Source

PLACE = "images[{}]"


def _recognises(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and "annotations" not in content
    )


def _read(content: dict[str, Any], source: Source) -> Annotations:
    name = content.get("dataset", source.path.stem)
    if not isinstance(name, str) or not name or set("/\\\0\n") & set(name):
        raise FileFormatError(
            f"{source.path}: field 'dataset' must be a name that a file could have; correct or remove it",
            path=source.path,
            name="dataset",
        )
    return Annotations(name, PLACE, _rows(content["images"], source))


def _rows(images: list[Any], source: Source) -> Iterator[AnnotationRow]:
    for number, fields in enumerate(images):
        image = Entry(fields, source.path, PLACE.format(number))
        file_name = image.text("filename")
        folder = image.optional_text("filepath")
        sentences = image.entries("sentences")
        sentence_ids = [sentence.identifier("sentid") for sentence in sentences]
        caption_ids = tuple(sentence_id for sentence_id in sentence_ids if sentence_id is not None)
        yield AnnotationRow(
            split=source.split or image.split() or "train",
            image_path=f"{folder}/{file_name}" if folder else file_name,
            image_id=image.identifier("cocoid") or file_name,
            captions=tuple(sentence.caption("raw") for sentence in sentences),
            caption_ids=caption_ids if len(caption_ids) == len(sentences) else (),
            number=number,
        )


FORM = Form('Karpathy\'s {"images": [{filename, split, sentences}]}', _recognises, _read)

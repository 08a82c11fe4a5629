"""Finding out what an annotation file holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError, FileFormatError
from cusa.data.parsing import parse_csv, parse_json, parse_json_lines, read_text
from cusa.data.readers import caption_list, coco_captions, image_folder, karpathy, pair_table
from cusa.data.readers.forms import Annotations, Form, Source, Table

DOCUMENT_FORMS: tuple[Form[Any], ...] = (karpathy.FORM, coco_captions.FORM, caption_list.FORM)
TABLE_FORMS: tuple[Form[Table], ...] = (pair_table.FORM, image_folder.FORM)
_JSON_SUFFIXES = (".json", ".jsonl")
_OPENING = re.compile(r"\s*([{\[]?)")


def read_annotations(source: Source) -> Annotations:
    """Read an annotation file of any known form.

    Args:
        source: The file.

    Returns:
        Its rows; what is wrong with one of them is told when it is asked for.

    Raises:
        DataError: If there is no such file, or it holds nothing.
        FileFormatError: If it is none of the known forms.
    """
    path = source.path
    if not path.exists():
        raise DataError(
            f"annotation file {path} does not exist; legal names: coco, flickr30k, demo, or a path",
            path=path,
        )
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty: it holds no image-caption pair", path=path)
    content = _parse(text, path)
    if not isinstance(content, Table):
        for document_form in DOCUMENT_FORMS:
            if document_form.recognises(content):
                return document_form.read(content, source)
        content = _table_of_one(content)
    for table_form in TABLE_FORMS:
        if table_form.recognises(content):
            return table_form.read(content, source)
    legal = "; ".join(form.description for form in (*DOCUMENT_FORMS, *TABLE_FORMS))
    fields = ", ".join(list(content.columns)[:10])
    message = f"{path}: with the fields or columns {fields or 'of nothing'} it is of no known form; legal: {legal}"
    raise FileFormatError(message, path=path, name="columns")


def _parse(text: str, path: Path) -> Any:
    """A :class:`Table`, or a parsed JSON document."""
    opening = _OPENING.match(text)
    bracket = opening[1] if opening is not None else ""
    if bracket == "{" and _is_json_lines(text.lstrip(), path):
        return _table_of_json_lines(parse_json_lines(text, path))
    if bracket or path.suffix in _JSON_SUFFIXES:
        return parse_json(text, path)
    return Table(*parse_csv(text, path))


def _is_json_lines(text: str, path: Path) -> bool:
    """Whether text that opens an object is one line of several, and not the first of a document."""
    first_line, _, further_lines = text.partition("\n")
    if path.suffix == ".jsonl":
        return first_line.rstrip() != "{"
    return first_line.rstrip().endswith("}") and further_lines.lstrip().startswith("{")


def _table_of_json_lines(lines: Iterator[tuple[int, Any]]) -> Table:
    first = next(lines)
    return Table(_fields(first[1]), chain([first], lines))


def _table_of_one(document: Any) -> Table:
    """A document as the only line of a table."""
    return Table(_fields(document), iter([(1, document)]))


def _fields(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, dict) else ()

"""The reader of annotation files: it finds out which form a file has."""

from __future__ import annotations

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
_MAX_SHOWN_COLUMNS = 10


def read_annotations(source: Source) -> Annotations:
    """Read an annotation file of any known form.

    Args:
        source: The file.

    Returns:
        Its rows; a fault in one of them is raised when it is asked for.

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
        # A table whose only line is the document.
        content = _table(iter([(1, content)]))
    for table_form in TABLE_FORMS:
        if table_form.recognises(content):
            return table_form.read(content, source)

    legal = "; ".join(form.description for form in (*DOCUMENT_FORMS, *TABLE_FORMS))
    columns = ", ".join(list(content.columns)[:_MAX_SHOWN_COLUMNS]) or "of nothing"
    raise FileFormatError(
        f"{path}: with the fields or columns {columns} it is of no known form; legal: {legal}",
        path=path,
        name="columns",
    )


def _parse(text: str, path: Path) -> Any:
    """Parse text to a :class:`Table`, or to a JSON document."""
    bracket = text.lstrip()[0]
    # A document and JSON Lines both begin with a brace.
    if bracket == "{" and _is_json_lines(text.lstrip(), path):
        return _table(parse_json_lines(text, path))
    if bracket in "{[" or path.suffix in _JSON_SUFFIXES:
        return parse_json(text, path)
    return Table(*parse_csv(text, path))


def _is_json_lines(text: str, path: Path) -> bool:
    """Return whether text that opens an object has one on each line, and is not one document."""
    first_line, _, further_lines = text.partition("\n")
    # The name tells, unless a document was written over several lines under it.
    if path.suffix == ".jsonl":
        return first_line.rstrip() != "{"
    return first_line.rstrip().endswith("}") and further_lines.lstrip().startswith("{")


def _table(lines: Iterator[tuple[int, Any]]) -> Table:
    """Return a table whose columns are the fields of its first line."""
    first_number, first_value = next(lines)
    columns = tuple(first_value) if isinstance(first_value, dict) else ()
    return Table(columns, chain([(first_number, first_value)], lines))

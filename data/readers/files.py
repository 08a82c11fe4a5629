"""The entry point of the readers: recognises the form of an annotation file and reads it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from cusa.data.errors import DataError, FileFormatError
from cusa.data.image_folder import is_image_name
from cusa.data.parsing import (
    described,
    parse_csv,
    parse_json,
    parse_json_lines,
    read_text,
    read_text_lines,
)
from cusa.data.readers import (
    caption_list,
    coco_captions,
    flickr_tokens,
    karpathy,
    pair_table,
    saved_dataset,
)
from cusa.data.readers.columns import (
    USUAL_COLUMNS,
    ColumnNames,
    choose_columns,
    has_pair_columns,
    normalised_name,
    refuse_columns,
)
from cusa.data.readers.first_bytes import (
    is_parquet,
    read_beginning,
    read_first_bytes,
    refuse_other_than_text,
)
from cusa.data.readers.forms import (
    LEGAL_DATASETS,
    Annotations,
    Form,
    Source,
    Table,
    field_names,
    is_address,
)
from cusa.data.readers.sidecar_captions import read_sidecars

DOCUMENT_FORMS: tuple[Form, ...] = (karpathy.FORM, coco_captions.FORM, caption_list.FORM)
SEPARATORS = (",", "\t", ";", "|")
_JSON_SUFFIXES = (".json", ".jsonl")
_MAX_SHOWN_COLUMNS = 10


def read_annotations(source: Source) -> Annotations:
    """Read an annotation file of any known form.

    Args:
        source: The file, or a folder of images with captions or of a saved data set.

    Returns:
        Its rows, read lazily: the error of a malformed row is raised when that row is read.

    Raises:
        DataError: If there is no such file, or it is empty.
        FileFormatError: If it has no known form. If its first bytes show that, the rest is not
            read.
    """
    path = source.path
    # Path.exists raises on names that are too long.
    if not os.path.exists(path):
        raise DataError(f"annotation file {path} does not exist; pass {LEGAL_DATASETS}", path=path)
    if path.is_dir() and saved_dataset.is_saved(path):
        return saved_dataset.read_saved(source)
    if path.is_dir():
        return read_sidecars(source)
    first_bytes = read_first_bytes(path)
    if is_parquet(first_bytes):
        from cusa.data.readers.parquet import read_parquet

        return read_parquet(source)
    refuse_other_than_text(path, first_bytes)
    beginning = read_beginning(path, first_bytes)
    if not beginning.strip() and not read_text(path).strip():
        message = f"{path} is empty; give it image-caption pairs"
        raise DataError(message, path=path)

    if _is_json(beginning, path):
        return _read_json(beginning, source)
    return _read_lines(beginning, source)


def _is_json(beginning: str, path: Path) -> bool:
    return beginning.lstrip().startswith(("{", "[")) or path.suffix in _JSON_SUFFIXES


def _read_json(beginning: str, source: Source) -> Annotations:
    """Read a JSON document of a known form, or JSON Lines."""
    path = source.path
    # A document and JSON Lines may both begin with a brace.
    if _is_json_lines(beginning.lstrip(), path):
        _check_first_fields(beginning, source)
        return pair_table.read_pairs(_table_of_json_lines(path), source)
    if beginning.lstrip().startswith("["):
        _check_first_fields(beginning.lstrip().removeprefix("["), source)
    content = parse_json(read_text(path), path)
    for document_form in DOCUMENT_FORMS:
        if document_form.recognises(content):
            return document_form.read(content, source)
    _check_columns(field_names(content), source)
    # A single object is JSON Lines of one line.
    table = Table(field_names(content), iter([(1, content)]))
    return pair_table.read_pairs(table, source)


def _read_lines(beginning: str, source: Source) -> Annotations:
    """Read a table with a header, or Flickr's caption lines."""
    path = source.path
    first_line = _first_line(beginning)
    if flickr_tokens.is_token_line(first_line):
        refuse_columns(source.columns, flickr_tokens.DESCRIPTION, path)
        return flickr_tokens.read_tokens(read_text(path), source)
    separator = _choose_separator(first_line, source.columns)
    _refuse_pairs_without_header(first_line.split(separator), path)
    columns, _ = parse_csv(io.StringIO(first_line, newline=""), path, separator)
    _check_columns(columns, source)
    table = Table(*parse_csv(read_text_lines(path), path, separator))
    return pair_table.read_pairs(table, source)


def _refuse_pairs_without_header(cells: Sequence[str], path: Path) -> None:
    """Refuse a table whose first line is a pair, by a cell that names a picture or an address."""
    for cell in cells:
        cell = cell.strip(' \t"')
        if is_image_name(cell) or is_address(cell):
            raise FileFormatError(
                f"{path}: its first line holds {described(cell)} instead of the names of columns; "
                "write a first line such as image,caption, with the separator of the others",
                path=path,
                location="line 1",
                name="columns",
            )


def _first_line(text: str) -> str:
    """Return the first non-blank line of a text."""
    return text.lstrip("\r\n \t").partition("\n")[0].rstrip("\r")


def _choose_separator(header: str, chosen: ColumnNames) -> str:
    """Return the separator with which a header has the columns that are needed.

    If no separator does, return the one that occurs most.
    """
    chosen_names = {normalised_name(name) for name in (chosen.image, chosen.caption) if name}
    for separator in SEPARATORS:
        names = {normalised_name(cell.strip('"')) for cell in header.split(separator)}
        if len(names) > 1 and (chosen_names & names or has_pair_columns(names)):
            return separator
    return max(SEPARATORS, key=header.count)


def _check_columns(columns: tuple[str, ...], source: Source) -> None:
    """Refuse content whose columns are not those of image-caption pairs.

    Raises:
        FileFormatError: If there is no image or no caption column, usual or named by the user.
    """
    if source.columns == USUAL_COLUMNS and not has_pair_columns(columns):
        _refuse_form(columns, source.path)
    choose_columns(columns, source.columns, source.path)


def _refuse_form(columns: tuple[str, ...], path: Path) -> NoReturn:
    """Raise the error of a file without a known form."""
    descriptions = [form.description for form in DOCUMENT_FORMS]
    descriptions += [pair_table.DESCRIPTION, flickr_tokens.DESCRIPTION]
    shown_columns = ", ".join(columns[:_MAX_SHOWN_COLUMNS]) or "(none)"
    raise FileFormatError(
        f"{path}: its fields or columns {shown_columns} fit no known form; legal: "
        f"{'; '.join(descriptions)}; name other columns with --image-column and --caption-column",
        path=path,
        name="columns",
    )


def _is_json_lines(text: str, path: Path) -> bool:
    """Return whether text has an object on each line, instead of being one document."""
    if not text.startswith("{"):
        return False
    first_line, _, further_lines = text.partition("\n")
    # Trust the suffix, unless the file is a document that begins with a brace on its own line.
    if path.suffix == ".jsonl":
        return first_line.rstrip() != "{"
    return first_line.rstrip().endswith("}") and further_lines.lstrip().startswith("{")


def _check_first_fields(text: str, source: Source) -> None:
    """Check the fields of the first object, before the whole file is read.

    Anything but a complete object is left to the parser of the whole file.
    """
    try:
        first_value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return
    if isinstance(first_value, dict):
        _check_columns(tuple(first_value), source)


def _table_of_json_lines(path: Path) -> Table:
    """Return the table of a JSON Lines file, with the fields of its first line as columns."""
    lines: Iterator[tuple[int, Any]] = parse_json_lines(read_text_lines(path), path)
    first_number, first_value = next(lines)
    all_lines = chain([(first_number, first_value)], lines)
    return Table(field_names(first_value), all_lines)

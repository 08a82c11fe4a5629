"""Tables of a pair a line: CSV with any separator, JSON Lines, Parquet, or a JSON list.

``image,caption``, open_clip's ``filepath<TAB>title``, Hugging Face's ``file_name,text``, Kaggle's
``image_name| comment_number| comment`` and their like: :mod:`cusa.data.readers.columns` knows the
names.
"""

from __future__ import annotations

from collections.abc import Iterator

from cusa.data.errors import FileFormatError, first_line
from cusa.data.readers.columns import (
    USUAL_COLUMNS,
    TableColumns,
    choose_columns,
    has_pair_columns,
    normalised_name,
)
from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Source, Table
from cusa.data.readers.split_names import split_by_alias

# Lines are counted from 1, as editors show them.
LOCATION_FORMAT = "line {}"
DESCRIPTION = "a table or JSON Lines of image,caption[,image_id][,split], by these or like names"


def read_pairs(table: Table, source: Source, location_format: str = LOCATION_FORMAT) -> Annotations:
    """Read a table of pairs.

    Args:
        table: The table.
        source: Where it comes from.
        location_format: What its entries are called: ``"line {}"`` takes an entry's number.

    Raises:
        FileFormatError: If a column is missing. A fault in a row is raised when it is asked for.
    """
    columns = choose_columns(table.columns, source.columns, source.path)
    rows = _rows(table, source, columns, location_format)
    return Annotations(source.path.stem, location_format, rows)


def _rows(
    table: Table,
    source: Source,
    columns: TableColumns,
    location_format: str,
) -> Iterator[AnnotationRow]:
    default_split = _default_split(source, columns)
    # Objects of JSON may differ in their fields and how they spell them.
    columns_by_names = {tuple(table.columns): columns}
    for number, fields in table.lines:
        entry = Entry(fields, source.path, location_format.format(number))
        own_columns = columns_by_names.get(entry.names)
        if own_columns is None:
            own_columns = _columns_of_entry(entry, columns, source)
            columns_by_names[entry.names] = own_columns
        image_path = source.image_prefix + entry.text(own_columns.image)
        yield AnnotationRow(
            split=source.split or entry.split(own_columns.split) or default_split,
            image_path=image_path,
            image_id=entry.identifier(own_columns.image_id) or image_path,
            captions=captions_of_columns(entry, own_columns.captions),
            caption_ids=(),
            number=number,
        )


def _columns_of_entry(
    entry: Entry,
    columns: TableColumns,
    source: Source,
) -> TableColumns:
    """Return the columns of an entry that has other fields than the first one.

    Those of the first one where the user named some, or where the entry lacks one: reading it then
    says which.
    """
    if source.columns != USUAL_COLUMNS or not has_pair_columns(entry.names):
        return columns
    try:
        return choose_columns(entry.names, source.columns, source.path)
    except FileFormatError as error:
        entry.refuse(first_line(error), error.name)


def captions_of_columns(
    entry: Entry,
    columns: tuple[str, ...],
) -> tuple[str, ...]:
    """Return the captions of an entry; of several columns, the empty ones are left out."""
    if len(columns) == 1:
        return entry.captions(columns[0])
    captions: list[str] = []
    for column in columns:
        if entry.optional_text(column) is not None:
            captions.append(entry.caption(column))
    return tuple(captions)


def _default_split(source: Source, columns: TableColumns) -> str:
    """Return the split of rows that name none, as the file's name tells, or its folder's."""
    split = source.split_by_name()
    # Hugging Face's imagefolder has a folder for each split.
    if split is None and normalised_name(columns.image) == "file_name":
        split = split_by_alias(source.path.resolve().parent.name.lower())
    return split or "train"

"""Tables with an image-caption pair per row: CSV, JSON Lines, Parquet, or JSON lists.

The columns may be ``image,caption``, open_clip's ``filepath<TAB>title``, Hugging Face's
``file_name,text``, Kaggle's ``image_name| comment_number| comment`` and the like;
:mod:`cusa.data.readers.columns` lists the names.
"""

from __future__ import annotations

from collections.abc import Iterator

from cusa.data.errors import FileFormatError, first_line
from cusa.data.parsing import described
from cusa.data.readers.columns import (
    USUAL_COLUMNS,
    TableColumns,
    choose_columns,
    has_pair_columns,
    normalised_name,
)
from cusa.data.readers.forms import (
    AnnotationRow,
    Annotations,
    Entry,
    Source,
    Table,
    is_address,
)
from cusa.data.readers.split_names import split_by_alias

# Lines are counted from 1, as editors show them.
LOCATION_FORMAT = "line {}"
DESCRIPTION = "a table or JSON Lines with image,caption[,image_id][,split] or similar names"


def read_pairs(table: Table, source: Source, location_format: str = LOCATION_FORMAT) -> Annotations:
    """Read a table of pairs.

    Args:
        table: The table.
        source: Where it comes from.
        location_format: Format of a row's location, given its number, such as ``"line {}"``.

    Raises:
        FileFormatError: If a column is missing. The error of a malformed row is raised when that
            row is read.
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
    # JSON objects may differ in their fields, and in the spelling of the fields' names.
    columns_by_names = {tuple(table.columns): columns}
    for number, fields in table.lines:
        entry = Entry(fields, source.path, location_format.format(number))
        own_columns = columns_by_names.get(entry.names)
        if own_columns is None:
            own_columns = _columns_of_entry(entry, columns, source)
            columns_by_names[entry.names] = own_columns
        image_path = source.image_prefix + _image_path(entry, own_columns.image)
        yield AnnotationRow(
            split=source.split or entry.split(own_columns.split) or default_split,
            image_path=image_path,
            image_id=entry.identifier(own_columns.image_id) or image_path,
            captions=captions_of_columns(entry, own_columns.captions),
            caption_ids=(),
            number=number,
        )


def _image_path(entry: Entry, column: str) -> str:
    """Return the path of an entry's image, which must not be an address."""
    image_path = entry.text(column)
    if is_address(image_path):
        problem = f"field {column!r} is an address on the web: {described(image_path)}"
        entry.refuse(f"{problem}; download the pictures, and name their files", column)
    return image_path


def _columns_of_entry(
    entry: Entry,
    columns: TableColumns,
    source: Source,
) -> TableColumns:
    """Return the columns of an entry with other fields than the first entry.

    If the user named columns, or the entry lacks one, these are the first entry's columns; reading
    the entry then raises an error that names the missing field.
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
    """Return the captions of an entry; with several columns, empty cells are left out."""
    if len(columns) == 1:
        return entry.captions(columns[0])
    captions: list[str] = []
    for column in columns:
        if entry.optional_text(column) is not None:
            captions.append(entry.caption(column))
    return tuple(captions)


def _default_split(source: Source, columns: TableColumns) -> str:
    """Return the split of rows that name none, by the name of the file or its folder."""
    split = source.split_by_name()
    # A Hugging Face imagefolder has a folder per split.
    if split is None and normalised_name(columns.image) == "file_name":
        split = split_by_alias(source.path.resolve().parent.name.lower())
    return split or "train"

"""Tables of a pair a line: CSV with any separator, JSON Lines, Parquet, or a JSON list.

``image,caption``, open_clip's ``filepath<TAB>title``, Hugging Face's ``file_name,text``, Kaggle's
``image_name| comment_number| comment`` and their like: :mod:`cusa.data.readers.columns` knows the
names.
"""

from __future__ import annotations

from collections.abc import Iterator

from cusa.data.readers.columns import TableColumns, choose_columns, normalised_name
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
    for number, fields in table.lines:
        entry = Entry(fields, source.path, location_format.format(number))
        image_path = source.image_prefix + entry.text(columns.image)
        yield AnnotationRow(
            split=source.split or entry.split(columns.split) or default_split,
            image_path=image_path,
            image_id=entry.identifier(columns.image_id) or image_path,
            captions=_captions(entry, columns.captions),
            caption_ids=(),
            number=number,
        )


def _captions(entry: Entry, columns: tuple[str, ...]) -> tuple[str, ...]:
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

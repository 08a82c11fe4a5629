"""A user's own table, JSON Lines or CSV, of a pair a line: ``image,caption[,image_id][,split]``."""

from __future__ import annotations

from collections.abc import Iterator

from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Form, Source, Table

# Lines are counted from 1, as editors show them.
LOCATION_FORMAT = "line {}"


def read_pairs(
    table: Table,
    source: Source,
    image_column: str,
    caption_column: str,
    default_split: str,
) -> Iterator[AnnotationRow]:
    """Read a table whose lines have an image and its caption, and maybe ``image_id`` and ``split``.

    Args:
        table: The table.
        source: Where it comes from.
        image_column: Column of the images' paths.
        caption_column: Column of the captions.
        default_split: Split of lines that name none.
    """
    for number, fields in table.lines:
        entry = Entry(fields, source.path, LOCATION_FORMAT.format(number))
        image_path = entry.text(image_column)
        yield AnnotationRow(
            split=source.split or entry.split() or default_split,
            image_path=image_path,
            image_id=entry.identifier("image_id") or image_path,
            captions=entry.captions(caption_column),
            caption_ids=(),
            number=number,
        )


def _read(table: Table, source: Source) -> Annotations:
    default_split = source.split_by_name() or "train"
    rows = read_pairs(table, source, "image", "caption", default_split)
    return Annotations(source.path.stem, LOCATION_FORMAT, rows)


FORM = Form(
    "lines of image,caption[,image_id][,split]",
    lambda table: "image" in table.columns,
    _read,
)

"""JSON lists of captioned images: ALBEF's ``[{image, caption}]``, or ``[{image_path, …}]``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cusa.data.readers.columns import has_split_column
from cusa.data.readers.forms import Annotations, Entry, Form, Source, Table, field_names
from cusa.data.readers.pair_table import read_pairs

LOCATION_FORMAT = "entry {}"


def _is_of_form(content: Any) -> bool:
    return isinstance(content, list)


def _read(content: list[Any], source: Source) -> Annotations:
    if not content:
        return Annotations(source.path.stem, LOCATION_FORMAT, iter(()))
    # Refuse a list of anything but objects.
    Entry(content[0], source.path, LOCATION_FORMAT.format(0))
    table = Table(field_names(content[0]), iter(enumerate(content)))
    # Such a file holds one split, unless its entries name theirs.
    if source.columns.split is None and not has_split_column(table.columns):
        source = replace(source, split=source.required_split())
    return read_pairs(table, source, LOCATION_FORMAT)


FORM = Form("a list [{image or image_path, caption[, image_id]}]", _is_of_form, _read)

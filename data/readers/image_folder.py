"""The ``metadata.jsonl`` or ``.csv`` of Hugging Face's imagefolder: ``file_name,text``."""

from __future__ import annotations

from cusa.data.readers.forms import Annotations, Form, Source, Table
from cusa.data.readers.pair_table import LOCATION_FORMAT, read_pairs
from cusa.data.readers.split_names import split_by_alias


def _is_of_form(table: Table) -> bool:
    return "file_name" in table.columns


def _read(table: Table, source: Source) -> Annotations:
    # Hugging Face's own name is text; other files may say caption.
    caption_column = "text"
    if "caption" in table.columns:
        caption_column = "caption"
    default_split = source.split_by_name() or _split_of_folder(source) or "train"
    rows = read_pairs(table, source, "file_name", caption_column, default_split)
    return Annotations(source.path.stem, LOCATION_FORMAT, rows)


def _split_of_folder(source: Source) -> str | None:
    """Return the split that the file's folder is called after, if any.

    imagefolder has a folder for each split.
    """
    return split_by_alias(source.path.resolve().parent.name.lower())


FORM = Form("lines of file_name,text", _is_of_form, _read)

"""The ``metadata.jsonl`` or ``.csv`` of Hugging Face's imagefolder: ``file_name,text``."""

from __future__ import annotations

from cusa.data.readers.forms import Annotations, Form, Source, Table
from cusa.data.readers.pair_table import LOCATION_FORMAT, read_pairs
from cusa.data.readers.split_names import split_by_alias


def _read(table: Table, source: Source) -> Annotations:
    # Hugging Face's own name is text; other files may say caption.
    caption_column = "text"
    if "caption" in table.columns:
        caption_column = "caption"
    # imagefolder has a folder for each split.
    folder_name = source.path.resolve().parent.name.lower()
    default_split = source.split_by_name() or split_by_alias(folder_name) or "train"
    rows = read_pairs(table, source, "file_name", caption_column, default_split)
    return Annotations(source.path.stem, LOCATION_FORMAT, rows)


FORM = Form("lines of file_name,text", lambda table: "file_name" in table.columns, _read)

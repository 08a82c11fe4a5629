"""The ``metadata.jsonl`` or ``.csv`` of Hugging Face's imagefolder: ``file_name,text``."""

from __future__ import annotations

from cusa.data.readers.forms import SPLIT_ALIASES, Annotations, Form, Source, Table
from cusa.data.readers.pair_table import PLACE, read_pairs
from cusa.data.records import SPLITS


def _recognises(table: Table) -> bool:
    return "file_name" in table.columns


def _read(table: Table, source: Source) -> Annotations:
    caption_column = "caption" if "caption" in table.columns else "text"
    default_split = source.split_by_name() or _split_of_folder(source) or "train"
    rows = read_pairs(table, source, "file_name", caption_column, default_split)
    return Annotations(source.path.stem, PLACE, rows)


def _split_of_folder(source: Source) -> str | None:
    """The split that the file's folder is called after: imagefolder has a folder a split."""
    folder = source.path.resolve().parent.name.lower()
    split = SPLIT_ALIASES.get(folder, folder)
    return split if split in SPLITS else None


FORM = Form("lines of file_name,text", _recognises, _read)

"""Rows in memory: a list of dictionaries, a pandas data frame, or those of ``datasets``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import DataError
from cusa.data.readers import saved_dataset
from cusa.data.readers.columns import choose_columns
from cusa.data.readers.forms import Annotations, Source, Table, field_names
from cusa.data.readers.image_bytes import with_image_files
from cusa.data.readers.pair_table import read_pairs

LOCATION_FORMAT = "row {}"
# Stands for the file in messages about rows in memory.
PATH = Path("rows")
LEGAL_ROWS = (
    "rows: a list of dictionaries, a pandas.DataFrame, a datasets.Dataset or a datasets.DatasetDict"
)


def is_rows(sources: Any) -> bool:
    """Return whether an argument is rows in memory rather than names or paths."""
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        return bool(sources) and isinstance(sources[0], dict)
    return _is_dataset(sources) or _is_dataset_dict(sources) or _is_frame(sources)


def _is_dataset_dict(rows: Any) -> bool:
    return isinstance(rows, dict) and bool(rows) and all(map(_is_dataset, rows.values()))


def _is_dataset(rows: Any) -> bool:
    """Return whether rows are a ``datasets.Dataset``; of arrow's tables, none has features."""
    return hasattr(rows, "column_names") and hasattr(rows, "features")


def _is_frame(rows: Any) -> bool:
    """Return whether rows are a ``pandas.DataFrame``; a series has no columns."""
    return hasattr(rows, "iloc") and hasattr(rows, "columns")


def read_rows(rows: Any, source: Source) -> list[Annotations]:
    """Read rows in memory; the fields of the first row are the columns.

    Pictures among them, as bytes or ``{bytes, path}``, are written to the source's unpack folder.

    Args:
        rows: A list of dictionaries, a ``pandas.DataFrame``, a ``datasets.Dataset``, or a
            ``datasets.DatasetDict``.
        source: Split, columns and folders of the rows.

    Returns:
        The rows; of a ``DatasetDict``, those of each split.

    Raises:
        DataError: If there are no rows, or a split's name is unknown.
        FileFormatError: If a column is missing. The error of a malformed row is raised when that
            row is read.
    """
    if _is_dataset_dict(rows):
        return saved_dataset.read_dataset_dict(rows, source)
    if _is_dataset(rows):
        return [saved_dataset.read_dataset(rows, source)]
    if not len(rows):
        raise DataError("there are no rows; give image-caption pairs", path=source.path)
    if _is_frame(rows):
        columns = tuple(rows.columns)
        records: Iterable[Any] = _records_of_frame(rows)
    else:
        columns = field_names(rows[0])
        records = rows
    image_column = choose_columns(columns, source.columns, source.path).image
    table = Table(columns, _numbered(records))
    first_image = _first_image(rows, image_column)
    if not isinstance(first_image, bytes | dict):
        return [read_pairs(table, source, LOCATION_FORMAT)]
    id_prefix = f"{source.split or 'train'}/"
    table = with_image_files(table, image_column, source.unpack_folder, id_prefix)
    annotations = read_pairs(table, source, LOCATION_FORMAT)
    return [replace(annotations, image_folder=source.unpack_folder)]


def _first_image(rows: Any, image_column: str) -> Any:
    if _is_frame(rows):
        return rows[image_column].iloc[0]
    return rows[0][image_column]


def _numbered(records: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row, from 0, and its fields as JSON would have them."""
    for number, fields in enumerate(records):
        if isinstance(fields, dict):
            fields = {name: _plain(value) for name, value in fields.items()}
        yield number, fields


def _plain(value: Any) -> Any:
    """Return numbers and arrays of numpy, paths and tuples as Python's own; NaN as ``None``."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple):
        return list(value)
    is_missing = isinstance(value, float) and np.isnan(value)
    return None if is_missing else value


def _records_of_frame(frame: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a pandas frame; a missing value (NaN) is ``None``."""
    with_none = frame.astype(object).where(frame.notna(), None)
    for values in with_none.itertuples(index=False, name=None):
        yield dict(zip(frame.columns, values, strict=True))

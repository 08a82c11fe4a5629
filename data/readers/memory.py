"""Rows in memory: a list of dictionaries, a pandas data frame, or a ``datasets.Dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError
from cusa.data.readers import saved_dataset
from cusa.data.readers.forms import Annotations, Source, Table, field_names
from cusa.data.readers.pair_table import read_pairs

LOCATION_FORMAT = "row {}"
# Stands for the file in messages about rows in memory.
PATH = Path("rows")


def is_rows(sources: Any) -> bool:
    """Return whether an argument is rows in memory rather than names or paths."""
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        return bool(sources) and isinstance(sources[0], dict)
    return hasattr(sources, "to_dict") or hasattr(sources, "column_names")


def read_rows(rows: Any, source: Source) -> Annotations:
    """Read rows in memory; the fields of the first row are the columns.

    Args:
        rows: A list of dictionaries, a ``pandas.DataFrame`` or a ``datasets.Dataset``.
        source: Split, columns and folders of the rows.

    Raises:
        DataError: If there are no rows.
        FileFormatError: If a column is missing. The error of a malformed row is raised when that
            row is read.
    """
    if hasattr(rows, "column_names"):
        return saved_dataset.read_dataset(rows, source)
    if not isinstance(rows, Sequence):
        rows = _records_of_frame(rows)
    if not rows:
        raise DataError("the rows are empty: they hold no image-caption pair", path=source.path)
    table = Table(field_names(rows[0]), iter(enumerate(rows)))
    return read_pairs(table, source, LOCATION_FORMAT)


def _records_of_frame(frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a pandas data frame, with missing values (NaN) as ``None``."""
    with_none = frame.astype(object).where(frame.notna(), None)
    records: list[dict[str, Any]] = with_none.to_dict("records")
    return records

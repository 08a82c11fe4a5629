"""Parquet files of image-caption pairs, with the images' paths or the images themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cusa.data.errors import FileFormatError, first_line
from cusa.data.readers.columns import choose_columns
from cusa.data.readers.extras import import_extra
from cusa.data.readers.forms import Annotations, Source, Table
from cusa.data.readers.image_bytes import with_image_files
from cusa.data.readers.pair_table import read_pairs

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# Rows are counted from 0, as data frames show them.
LOCATION_FORMAT = "row {}"
_ROWS_PER_BATCH = 64


def read_parquet(source: Source) -> Annotations:
    """Read a Parquet file; embedded pictures are written to the source's unpack folder.

    Raises:
        FileFormatError: If it is damaged, or a column is missing.
        DataError: If pyarrow is not installed.
    """
    parquet = import_extra("pyarrow.parquet", source.path)
    try:
        file: ParquetFile = parquet.ParquetFile(source.path)
        names = tuple(file.schema_arrow.names)
    except (OSError, ValueError) as error:
        raise _damaged(source, error) from None
    columns = choose_columns(names, source.columns, source.path)
    table = Table(names, _rows(file, source))
    # Texts are paths; a column of any other type holds the pictures themselves.
    image_type = str(file.schema_arrow.field(columns.image).type)
    if image_type in ("string", "large_string", "string_view"):
        return read_pairs(table, source, LOCATION_FORMAT)
    split = source.split_by_name() or "train"
    table = with_image_files(table, columns.image, source.unpack_folder, f"{split}/")
    annotations = read_pairs(table, replace(source, image_prefix=""), LOCATION_FORMAT)
    return replace(annotations, image_folder=source.unpack_folder)


def _rows(file: ParquetFile, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row, from 0, and its cells by column."""
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            for cells in batch.to_pylist():
                yield number, cells
                number += 1
    except (OSError, ValueError) as error:
        raise _damaged(source, error) from None


def _damaged(source: Source, error: Exception) -> FileFormatError:
    message = f"{source.path} is not a valid Parquet file ({first_line(error)}); download it again"
    return FileFormatError(message, path=source.path)

"""The columns of a Parquet file that make it a unit of a set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cusa.data.errors import DataError, first_line
from cusa.data.readers.extras import import_extra
from cusa.data.tars.samples import TarError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# In the order of preference, where several columns hold bytes.
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
_KEY_COLUMNS = ("key", "__key__", "image_id")
_BYTES_FIELD = "bytes"


def open_parquet(path: Path) -> ParquetFile:
    """Open a Parquet file.

    Raises:
        TarError: If it is none, or cannot be read.
        DataError: If pyarrow is not installed.
    """
    parquet = import_extra("pyarrow.parquet", path)
    try:
        return parquet.ParquetFile(path, memory_map=True)
    except Exception as error:  # pyarrow raises many things on damaged files
        raise damaged_parquet(path, error) from None


def image_column(
    file: ParquetFile,
    path: Path,
) -> str:
    """Return the column of the images: bytes, or ``{bytes, path}`` as Hugging Face writes them.

    Args:
        file: The opened file.
        path: The file, as errors name it.

    Raises:
        DataError: If there is none, or more than one could be meant.
    """
    candidates: list[str] = []
    for column in file.schema_arrow:
        if _holds_bytes(column.type):
            candidates.append(column.name)
    for name in _IMAGE_COLUMNS:
        if name in candidates:
            return name
    if len(candidates) != 1:
        problem = "no column holds the bytes of images"
        if candidates:
            problem = f"the columns {', '.join(candidates)} could each be the images"
        raise DataError(
            f"{path}: {problem}; write a column 'image' of bytes, or of {{bytes, path}}",
            path=path,
            name="image",
        )
    return candidates[0]


def _holds_bytes(column_type: Any) -> bool:
    types = import_extra("pyarrow.types", "a Parquet file")
    if types.is_struct(column_type):
        number = column_type.get_field_index(_BYTES_FIELD)
        if number < 0:
            return False
        column_type = column_type.field(number).type
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_kind(column_type) for is_kind in kinds)


def image_bytes(cell: Any) -> bytes | None:
    """Return the bytes of an image, given its cell; ``None`` if there are none."""
    if isinstance(cell, dict):
        return cell[_BYTES_FIELD]
    return cell


def key_column(names: Sequence[str]) -> str | None:
    """Return the column of the keys among those of a file; ``None``: rows have no keys."""
    for name in _KEY_COLUMNS:
        if name in names:
            return name
    return None


def damaged_parquet(
    path: Path,
    error: Exception,
) -> TarError:
    """Return the error of a file that pyarrow cannot read."""
    message = f"{path} is not a whole Parquet file ({first_line(error)}); download it again"
    return TarError(message, path=path)

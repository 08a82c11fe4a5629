"""Pictures embedded in a table, each written to an image file once, byte by byte as it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from cusa.data.errors import DataError
from cusa.data.readers.columns import normalised_name
from cusa.data.readers.forms import Table

_SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif"}
_ID_COLUMN = "image_id"
_DIGITS = 32


def with_image_files(
    table: Table,
    image_column: str,
    folder: Path | None,
    id_prefix: str = "",
) -> Table:
    """Return a table whose images are paths, of one whose images are bytes.

    An image is bytes, a structure ``{bytes, path}`` as in Hugging Face data sets, or a path, which
    stays. An image file is named after a checksum of its bytes, so equal pictures share a file. The
    table gets a column ``image_id``, unless it has one: the picture's own path; the path and the
    checksum, if another picture has the same path; or the checksum, if the picture has no path.

    Args:
        table: The table.
        image_column: Column of the images.
        folder: Where the files are written; the new paths are relative to it. ``None``: they are
            not written.
        id_prefix: What ids that are made here begin with, such as ``"train/"``.
    """
    has_ids = _ID_COLUMN in map(normalised_name, table.columns)
    lines = _lines_with_files(table, image_column, folder, id_prefix, has_ids)
    if has_ids:
        return Table(table.columns, lines)
    return Table((*table.columns, _ID_COLUMN), lines)


def _lines_with_files(
    table: Table,
    image_column: str,
    folder: Path | None,
    id_prefix: str,
    has_ids: bool,
) -> Iterator[tuple[int, Any]]:
    first_content_of_path: dict[str, str] = {}
    for number, fields in table.lines:
        content, path = _content_and_path(fields.get(image_column))
        if content is None:
            yield number, {**fields, image_column: path}
            continue
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        image_path = f"{digest[:2]}/{digest}{_suffix(content)}"
        if folder is not None:
            write_picture(content, folder / image_path)
        if has_ids:
            yield number, {**fields, image_column: image_path}
            continue
        image_id = digest
        if path:
            image_id = path
            if first_content_of_path.setdefault(path, digest) != digest:
                image_id = f"{path}~{digest}"
        yield number, {**fields, image_column: image_path, _ID_COLUMN: id_prefix + image_id}


def _content_and_path(value: Any) -> tuple[bytes | None, Any]:
    """Return the bytes of an image, or ``None`` if it has none, and its path."""
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, dict) or value.keys().isdisjoint(("bytes", "path")):
        return None, value
    content, path = value.get("bytes"), value.get("path")
    # Of other types, neither is a picture's: the value is left to be refused as it is.
    if not isinstance(content, bytes | None) or not isinstance(path, str | None):
        return None, value
    return content, path


def write_picture(content: bytes, file_path: Path) -> None:
    """Write a picture, unless it is there.

    Args:
        content: The bytes of the image file.
        file_path: The file, named after its content; its folder is made if it is not there.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        if file_path.is_file() and file_path.stat().st_size == len(content):
            return
        file_path.parent.mkdir(parents=True, exist_ok=True)
        # Processes may write the same picture at a time.
        temporary = file_path.with_name(f".{file_path.stem}-{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(file_path)
    except OSError as error:
        message = f"{file_path} cannot be written ({error.strerror}); pass another --image-root"
        raise DataError(message, path=file_path, name="image_root") from None


def _suffix(content: bytes) -> str:
    """Return the suffix of an image's format, or ``".img"`` if the format is not known.

    Damaged images are reported later, when they are decoded.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            return _SUFFIX_OF_FORMAT.get(image.format or "", ".img")
    except Exception:  # Pillow raises errors of many classes on damaged files
        return ".img"

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
from cusa.data.readers.forms import Table

_SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif"}
_ID_COLUMN = "image_id"
_DIGITS = 32


def with_image_files(table: Table, image_column: str, folder: Path, id_prefix: str = "") -> Table:
    """Replace the embedded pictures of a table by the paths of image files.

    An image is bytes, a structure ``{bytes, path}`` as in Hugging Face data sets, or a path, which
    stays. An image file is named after a checksum of its bytes, so equal pictures share a file. The
    table gets a column ``image_id``, unless it has one: the picture's own path; the path and the
    checksum, if another picture has the same path; or the checksum, if the picture has no path.

    Args:
        table: The table.
        image_column: Column of the images.
        folder: Where the files are written; the new paths are relative to it.
        id_prefix: Prefix of the ids that are made here, such as ``"train/"``.

    Raises:
        DataError: If a file cannot be written. This is raised when its row is read.
    """
    lines = _lines_with_files(table, image_column, folder, id_prefix)
    return Table((*table.columns, _ID_COLUMN), lines)


def _lines_with_files(
    table: Table,
    image_column: str,
    folder: Path,
    id_prefix: str,
) -> Iterator[tuple[int, Any]]:
    first_content_of_path: dict[str, str] = {}
    for number, fields in table.lines:
        content, path = _content_and_path(fields.get(image_column))
        if content is None:
            yield number, {**fields, image_column: path}
            continue
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        image_id = digest
        if path:
            image_id = path
            if first_content_of_path.setdefault(path, digest) != digest:
                image_id = f"{path}~{digest}"
        image_path = write_picture(content, digest, folder)
        yield number, {_ID_COLUMN: id_prefix + image_id, **fields, image_column: image_path}


def _content_and_path(value: Any) -> tuple[bytes | None, Any]:
    """Return the bytes of an image, or ``None`` if it has none, and its path."""
    if isinstance(value, bytes):
        return value, None
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        return value.get("bytes"), value.get("path")
    return None, value


def write_picture(content: bytes, digest: str, folder: Path) -> str:
    """Write a picture unless its file exists, and return its path relative to the folder.

    Args:
        content: The bytes of the image file.
        digest: A checksum of these bytes in hexadecimal, which becomes the file's name.
        folder: The folder; it is created if it does not exist.

    Raises:
        DataError: If it cannot be written.
    """
    image_path = f"{digest[:2]}/{digest}{_suffix(content)}"
    file_path = folder / image_path
    try:
        if file_path.is_file() and file_path.stat().st_size == len(content):
            return image_path
        file_path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may write the same picture at the same time.
        temporary = file_path.with_name(f".{digest}-{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(file_path)
    except OSError as error:
        message = f"{file_path} cannot be written ({error.strerror}); pass another --image-root"
        raise DataError(message, path=file_path, name="--image-root") from None
    return image_path


def _suffix(content: bytes) -> str:
    """Return the suffix of an image's format, or ``".img"`` if the format is not known.

    Damaged images are reported later, when they are decoded.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            return _SUFFIX_OF_FORMAT.get(image.format or "", ".img")
    except Exception:  # Pillow raises errors of many classes on damaged files
        return ".img"

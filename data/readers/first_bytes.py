"""Recognition of a file's type by its first bytes."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from cusa.data.errors import FileFormatError
from cusa.data.parsing import not_utf8, refuse_nul

N_FIRST_BYTES = 1 << 16
# Of a first line that is longer: tables of a million columns, captions by the thousand.
_LONGEST_FIRST_LINE = 1 << 24


@dataclass(frozen=True)
class _Signature:
    """The magic bytes of a file type.

    Attributes:
        kind: Name of the file type, with its article.
        advice: What the user should do with such a file.
        magic: The bytes.
        offset: Byte of the file at which they begin.
    """

    kind: str
    advice: str
    magic: bytes
    offset: int = 0


_UNPACK = "unpack it and pass its contents"
_PASS_FOLDER = "pass the folder of the pictures, with their captions beside them"
_SAVE_AS_UTF8 = "save it as UTF-8"
_DOWNLOAD = "it is not the data; download the file itself"
_PASS_SAVED = "pass the folder that datasets saved"
_EXPORT = "export it as CSV or JSON Lines"
_NO_ANNOTATIONS = "pass annotations, not embeddings"

_SIGNATURES = (
    _Signature("a gzip archive", _UNPACK, b"\x1f\x8b"),
    _Signature("a bzip2 archive", _UNPACK, b"BZh"),
    _Signature("an xz archive", _UNPACK, b"\xfd7zXZ\0"),
    _Signature("a Zstandard archive", _UNPACK, b"\x28\xb5\x2f\xfd"),
    _Signature("a zip archive (or a spreadsheet)", _UNPACK, b"PK\x03\x04"),
    _Signature("a tar archive", _UNPACK, b"ustar", offset=257),
    _Signature("a JPEG picture", _PASS_FOLDER, b"\xff\xd8\xff"),
    _Signature("a PNG picture", _PASS_FOLDER, b"\x89PNG\r\n"),
    _Signature("a GIF picture", _PASS_FOLDER, b"GIF8"),
    _Signature("a WebP picture", _PASS_FOLDER, b"WEBP", offset=8),
    # The byte order mark of UTF-32 begins with that of UTF-16, so it comes first.
    _Signature("UTF-32 text", _SAVE_AS_UTF8, codecs.BOM_UTF32_LE),
    _Signature("UTF-16 text", _SAVE_AS_UTF8, codecs.BOM_UTF16_LE),
    _Signature("UTF-16 text", _SAVE_AS_UTF8, codecs.BOM_UTF16_BE),
    _Signature("an Arrow file", _PASS_SAVED, b"ARROW1"),
    _Signature("an Arrow stream", _PASS_SAVED, b"\xff\xff\xff\xff"),
    _Signature("an SQLite database", _EXPORT, b"SQLite format 3\0"),
    _Signature("a PDF document", _EXPORT, b"%PDF"),
    _Signature("an HDF5 file", _NO_ANNOTATIONS, b"\x89HDF\r\n\x1a\n"),
    _Signature("a NumPy array", _NO_ANNOTATIONS, b"\x93NUMPY"),
    _Signature("a pickle", _EXPORT, b"\x80\x02"),
    _Signature("a pickle", _EXPORT, b"\x80\x03"),
    _Signature("a pickle", _EXPORT, b"\x80\x04"),
    _Signature("a pickle", _EXPORT, b"\x80\x05"),
    _Signature("a Git LFS pointer", _DOWNLOAD, b"version https://git-lfs"),
    _Signature("a web page", _DOWNLOAD, b"<!DOCTYPE html"),
    _Signature("a web page", _DOWNLOAD, b"<!doctype html"),
    _Signature("a web page", _DOWNLOAD, b"<html"),
)
_PARQUET = b"PAR1"


def read_first_bytes(path: Path) -> bytes:
    """Read the first bytes of a file, at most :data:`N_FIRST_BYTES`.

    Raises:
        FileFormatError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(N_FIRST_BYTES)
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); pass a file that can"
        raise FileFormatError(message, path=path) from None


def is_parquet(first_bytes: bytes) -> bool:
    """Return whether a file with these first bytes is a Parquet file."""
    return first_bytes.startswith(_PARQUET)


def refuse_other_than_text(path: Path, first_bytes: bytes) -> None:
    """Refuse a file whose first bytes show that it is not UTF-8 text.

    Args:
        path: The file, for the message.
        first_bytes: Its first bytes, from :func:`read_first_bytes`.

    Raises:
        FileFormatError: If it is not text; says what it is, and what to do.
    """
    for signature in _SIGNATURES:
        if first_bytes.startswith(signature.magic, signature.offset):
            message = f"{path} is {signature.kind}, not an annotation file; {signature.advice}"
            raise FileFormatError(message, path=path, name=signature.kind)
    # Any bytes are Latin-1, and only NUL is looked for.
    refuse_nul(first_bytes.decode("latin-1"), path)


def read_beginning(
    path: Path,
    first_bytes: bytes,
) -> str:
    """Return the text that a file begins with: its first bytes, and its first line to the end.

    Args:
        path: The file.
        first_bytes: What :func:`read_first_bytes` returned of it.

    Raises:
        FileFormatError: If it is not UTF-8; names the byte.
    """
    if b"\n" not in first_bytes.lstrip() and len(first_bytes) == N_FIRST_BYTES:
        with path.open("rb") as file:
            file.seek(N_FIRST_BYTES)
            first_bytes += file.readline(_LONGEST_FIRST_LINE)
            # The beginning of the second line tells JSON Lines from a document.
            first_bytes += file.readline(N_FIRST_BYTES)
    # The last character may be cut off.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(first_bytes)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    return text.removeprefix("\ufeff")

"""Sealed HDF5 files: a line of text with a checksum over every byte, before the HDF5 part.

HDF5 lets a file begin with a block that it ignores (the "user block"), and any HDF5 tool reads such
a file. Ours has 512 bytes: one line with the name of the format, its version and the sha256 of
everything after the block, then zeros.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.files import atomic_file
from cusa.data.store.file_behind import write_behind
from cusa.data.store.hdf5 import open_hdf5, whole_numbers_attribute

INDEX_FORMAT = "cusa-embeddings"
SHARD_FORMAT = "cusa-embeddings-shard"
# A reader refuses another major version, and ignores names that it does not know.
VERSION = (2, 1)

BLOCK = 512
# Bytes; arrays at least as long as this begin at multiples of BLOCK.
_SECTOR = 4096
# Bytes by which a file that is built in memory grows at a time.
_MEMORY_STEP = 1 << 22
# Where the arrays of a file lie.
_LAYOUT = {
    "locking": False,
    "alignment_threshold": _SECTOR,
    "alignment_interval": BLOCK,
}
_DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FIRST_LINE_PATTERN = re.compile(rb"(cusa-[a-z-]+) (\d+)\.(\d+) sha256=([0-9a-f]{64})\n\0*")


class VersionError(StoreError):
    """A file of a store has another major version."""


class ChecksumError(StoreError):
    """A file of a store has changed since it was written."""


class ReplacedError(StoreError):
    """A file of a store is intact, but not the one expected."""


def write_sealed(
    file_path: Path,
    file_format: str,
    fill: Callable[[h5py.File], None],
    in_memory: bool = True,
) -> str:
    """Write a sealed HDF5 file, atomically.

    The file is built in memory and written in one piece, or else written through Python. So a full
    disk is Python's error to report, and does not leave the HDF5 library with a file that it cannot
    close.

    Args:
        file_path: Final path.
        file_format: Name of the format.
        fill: Called with the empty file, to write its contents.
        in_memory: Whether the file is built in memory; the bytes of both ways differ.

    Returns:
        The file's seal: sha256 (hex) of all bytes after the first 512.

    Raises:
        StoreError: If the disk or quota is full. Then no partial file remains, and an older file of
            that name is kept.
    """
    content = b""
    if in_memory:
        content = _build_in_memory(file_path, file_format, fill)
    major, minor = VERSION

    try:
        with atomic_file(file_path) as temporary, temporary.open("w+b") as file:
            if in_memory:
                # The content goes first and in one piece: the page cache then holds it in large
                # pages.
                file.seek(BLOCK)
                file.write(content)
                digest = hashlib.sha256(content)
            else:
                write_behind(file, BLOCK, partial(_fill, file_format, fill), _LAYOUT)
                file.seek(BLOCK)
                digest = hashlib.file_digest(file, "sha256")
            seal = digest.hexdigest()
            first_line = f"{file_format} {major}.{minor} sha256={seal}\n".encode()
            file.seek(0)
            file.write(first_line.ljust(BLOCK, b"\0"))
    except OSError as error:
        if error.errno not in _DISK_FULL_ERRORS:
            raise
        raise StoreError(
            f"cannot write {file_path}: {error.strerror}; make room and run the same command "
            "again, finished files are kept",
            path=file_path,
        ) from None
    return seal


def _build_in_memory(
    file_path: Path,
    file_format: str,
    fill: Callable[[h5py.File], None],
) -> bytes:
    """Return the bytes of an HDF5 file that is not written to disk."""
    file = h5py.File(
        str(file_path),
        "w",
        driver="core",
        backing_store=False,
        block_size=_MEMORY_STEP,
        **_LAYOUT,
    )
    with file:
        _fill(file_format, fill, file)
        file.flush()
        content: bytes = file.id.get_file_image()
    return content


def _fill(file_format: str, fill: Callable[[h5py.File], None], file: h5py.File) -> None:
    file.attrs["format"] = file_format
    file.attrs["format_version"] = np.asarray(VERSION, "<i4")
    fill(file)


def read_seal(file_path: Path, file_format: str) -> str:
    """Read the seal that a file carries, without verifying it; see :func:`seal_holds`.

    Raises:
        StoreError: If the file is missing or not of this format.
        VersionError: If it is of another major version.
    """
    with _opened(file_path) as file:
        seal, _ = _read_first_line(file, file_path, file_format)
    return seal


def seal_holds(file_path: Path, file_format: str) -> bool:
    """Return whether a file is exactly as it was written; reads every byte."""
    try:
        with _opened(file_path) as file:
            seal, version = _read_first_line(file, file_path, file_format)
            if hashlib.file_digest(file, "sha256").hexdigest() != seal:
                return False

        # No checksum covers the version in the first line.
        with open_hdf5(file_path) as content:
            return version == whole_numbers_attribute(content, "format_version", 2)
    except StoreError:
        return False


@contextmanager
def open_sealed(
    file_path: Path,
    file_format: str,
    seal: str | None = None,
) -> Iterator[h5py.File]:
    """Open a sealed file for reading, without verifying its seal.

    Args:
        file_path: The file.
        file_format: Name of its format.
        seal: The seal that it must carry; ``None``: any.

    Raises:
        StoreError: If it is missing, truncated, not of this format, or carries another seal; also
            in place of whatever h5py raises within the block.
        VersionError: If it is of another major version.
    """
    seal = require_seal(file_path, file_format, seal)
    with open_hdf5(file_path) as file:
        # Files are replaced atomically: if the seal is still the same, this is the file opened.
        require_seal(file_path, file_format, seal)
        yield file


def require_seal(
    file_path: Path,
    file_format: str,
    seal: str | None,
) -> str:
    """Return the seal that a file carries, which must be ``seal`` unless that is ``None``.

    Raises:
        ReplacedError: If it is another seal.
        StoreError: If the file is missing or not of this format.
    """
    seal_of_file = read_seal(file_path, file_format)
    if seal is not None:
        _require_equal(seal_of_file, seal, file_path, file_format)
    return seal_of_file


@contextmanager
def open_bytes(file_path: Path, file_format: str, seal: str) -> Iterator[BufferedReader]:
    """Open a sealed file as bytes.

    Args:
        file_path: The file.
        file_format: Name of its format.
        seal: The seal that it must carry.

    Raises:
        StoreError: If it is missing, not of this format, or carries another seal
            (:class:`ReplacedError`).
        VersionError: If it is of another major version.
    """
    with _opened(file_path) as file:
        seal_of_file, _ = _read_first_line(file, file_path, file_format)
        _require_equal(seal_of_file, seal, file_path, file_format)
        yield file


def _require_equal(seal: str, expected: str, file_path: Path, file_format: str) -> None:
    """Refuse a file that carries another seal than expected."""
    if seal == expected:
        return
    if file_format == INDEX_FORMAT:
        problem = "was replaced after the store was opened"
        advice = "open it again"
    else:
        problem = "is intact, but not the file that the store or set names"
        advice = "move it away and run the cusa-precompute command again"
    message = (
        f"{file_path} {problem} (its checksum is {seal[:12]}, expected {expected[:12]}); {advice}"
    )
    raise ReplacedError(message, path=file_path)


@contextmanager
def _opened(file_path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading."""
    try:
        file = file_path.open("rb")
    except FileNotFoundError:
        message = f"{file_path} is missing; run the cusa-precompute command again to make it"
        raise StoreError(message, path=file_path) from None
    except IsADirectoryError:
        raise StoreError(
            f"{file_path} is a folder, not a file of a store", path=file_path
        ) from None
    except ValueError:  # a NUL in the name
        raise StoreError(f"{file_path!r} is not a legal file name", path=file_path) from None
    with file:
        yield file


def _read_first_line(
    file: BufferedReader, file_path: Path, file_format: str
) -> tuple[str, tuple[int, int]]:
    """Read seal and version from the first line, and leave the file after the user block."""
    # Read the whole block, as the rest of it must be zeros.
    block = os.pread(file.fileno(), BLOCK, 0)
    file.seek(BLOCK)

    fields = _FIRST_LINE_PATTERN.fullmatch(block)
    if fields is None or len(block) < BLOCK or fields[1].decode() != file_format:
        raise StoreError(
            f"{file_path} is not a {file_format} file, or its first bytes are damaged",
            path=file_path,
        )
    version = (int(fields[2]), int(fields[3]))
    if version[0] != VERSION[0]:
        raise VersionError(
            f"{file_path} has format version {version[0]}.{version[1]}, this cusa reads "
            f"{VERSION[0]}.x; use the cusa that wrote it, or make it again",
            path=file_path,
        )
    return fields[4].decode(), version

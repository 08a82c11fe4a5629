"""Sealed HDF5 files: a checksum over every byte, in a block of plain text before the HDF5 part.

HDF5 lets a file begin with a block that it does not look at (its "user block"); any HDF5 tool reads such a file. Ours
is 512 bytes: one line with the form, the format version and the sha256 of all that follows, then zeros.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file

INDEX_FORMAT = "cusa-embeddings"
SHARD_FORMAT = "cusa-embeddings-shard"
VERSION = (2, 0)  # a reader refuses another major number, and ignores names that it does not know

BLOCK = 512
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LINE = re.compile(rb"(cusa-[a-z-]+) (\d+)\.(\d+) sha256=([0-9a-f]{64})\n\0*")


class VersionError(CusaError):
    """A file of ours, of another major version."""


def write_sealed(path: Path, form: str, build: Callable[[h5py.File], None]) -> str:
    """Write an HDF5 file, whole or not at all.

    It is built in memory and written in one piece: where the disk is full, Python says so, and no HDF5 library is left
    with a file that it cannot close.

    Args:
        path: Final path.
        form: Name of the format.
        build: Fills the file.

    Returns:
        Its seal: sha256 (hex) of all bytes after the first 512.

    Raises:
        CusaError: If disk or quota is full; nothing is left of the file, an older one of that name stays.
    """
    with h5py.File(str(path), "w", driver="core", backing_store=False, block_size=1 << 22, locking=False,
                   alignment_threshold=4096, alignment_interval=BLOCK) as file:  # fmt: skip
        file.attrs["format"], file.attrs["format_version"] = form, np.asarray(VERSION, "<i4")
        build(file)
        file.flush()
        content = file.id.get_file_image()
    seal = hashlib.sha256(content).hexdigest()
    line = f"{form} {VERSION[0]}.{VERSION[1]} sha256={seal}\n".encode()
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as out:
            out.seek(BLOCK)
            out.write(content)  # first and in one piece: the page cache then holds the file in large pages
            out.seek(0)
            out.write(line.ljust(BLOCK, b"\0"))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CusaError(
            f"cannot write {path}: {error.strerror}; make room and run the same command again, finished files are kept"
        ) from None
    return seal


def read_seal(path: Path, form: str) -> str:
    """The seal that a file carries; whether it holds is :func:`seal_holds`'s question.

    Raises:
        CusaError: If the file is missing or not of this form.
        VersionError: If it is of another major version.
    """
    try:
        with path.open("rb") as file:
            block = file.read(BLOCK)
    except FileNotFoundError:
        raise CusaError(f"{path} is missing; run the cusa-precompute command again to make it") from None
    except IsADirectoryError:
        raise CusaError(f"{path} is a folder, not a {form} file") from None
    found = _LINE.fullmatch(block)
    if found is None or len(block) < BLOCK or found[1].decode() != form:
        raise CusaError(f"{path} is not a {form} file, or its first bytes are damaged")
    if int(found[2]) != VERSION[0]:
        raise VersionError(
            f"{path} has format version {found[2].decode()}.{found[3].decode()}, this cusa reads {VERSION[0]}.x; "
            "use the cusa that wrote it, or make it again"
        )
    return found[4].decode()


def seal_holds(path: Path, form: str) -> bool:
    """Whether every byte of a file is as it was written; reads all of it."""
    try:
        claimed = read_seal(path, form)
        with path.open("rb") as file:
            line = file.read(BLOCK)
            if hashlib.file_digest(file, "sha256").hexdigest() != claimed:
                return False
        with open_sealed(path, form) as content:  # the line's own version is under no checksum
            major, minor = content.attrs["format_version"]
            return line.startswith(f"{form} {major}.{minor} ".encode())
    except CusaError:
        return False


@contextmanager
def open_sealed(path: Path, form: str) -> Iterator[h5py.File]:
    """Open a sealed file for reading; the seal itself is not verified.

    Raises:
        CusaError: If it is missing, truncated, not of this form or of another major version.
    """
    read_seal(path, form)
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise CusaError(f"{path} is damaged ({_short(error)}); see cusa-store verify") from None
    with file:
        try:
            yield file
        except CusaError:
            raise
        except (KeyError, OSError, ValueError) as error:  # a name is missing, its block cannot be read or parsed
            raise CusaError(f"{path} is damaged ({_short(error)}); see cusa-store verify") from None


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0].strip("'\"") if str(error) else type(error).__name__

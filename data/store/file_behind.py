"""The end of a file as a file, to which the HDF5 library writes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import h5py


def write_behind(
    file: BinaryIO,
    n_before: int,
    fill: Callable[[h5py.File], None],
    layout: Mapping[str, Any],
) -> None:
    """Write an HDF5 file behind the first bytes of an open file.

    Args:
        file: The open file, for reading and writing; it is empty.
        n_before: The number of bytes before the HDF5 file.
        fill: Called with the empty HDF5 file, to write its contents.
        layout: Further arguments of ``h5py.File``.

    Raises:
        OSError: If the disk or quota is full.
    """
    behind = FileBehind(file, n_before)
    try:
        with h5py.File(behind, "w", driver="fileobj", **layout) as content:
            fill(content)
    finally:
        # In place of what the HDF5 library makes of it.
        if behind.error is not None:
            raise behind.error


class FileBehind(io.RawIOBase):
    """A file behind the first bytes of another, which become zeros.

    Args:
        file: The other file, open for reading and writing; it is empty.
        n_before: The number of bytes before this one.

    Attributes:
        error: The first error of writing. The library is not told, as it could not close the file.
    """

    def __init__(self, file: BinaryIO, n_before: int) -> None:
        file.write(bytes(n_before))
        self._file = file
        self._n_before = n_before
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte."""
        if whence == os.SEEK_SET:
            offset += self._n_before
        return self._file.seek(offset, whence) - self._n_before

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, content: Any) -> int:
        """Write bytes."""
        try:
            self._file.write(content)
        except OSError as error:
            self.error = self.error or error
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        """Change the length."""
        assert size is not None, "the HDF5 library gives it"
        return self._file.truncate(size + self._n_before) - self._n_before

    def flush(self) -> None:
        """Do nothing; the file is flushed when it is whole."""

"""The end of a file as a file, to which the HDF5 library writes."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO


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

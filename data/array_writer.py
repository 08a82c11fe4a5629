"""Arrays that grow while data are read: in memory at first, in a temporary file once they are long.

What is in the file is mapped into memory: the system reads it on demand, and may drop it again.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cusa.data.errors import DataError

# Longer arrays are written to a file.
MAX_BYTES_IN_MEMORY = 1 << 20


class ArrayWriter:
    """Collects the values of an array.

    The file has no name and lies in the folder for temporary files, ``TMPDIR``. So it vanishes with
    the process, however that ends.

    Args:
        dtype: Dtype of the array.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY)  # noqa: SIM115
        self._n_bytes = 0

    def __del__(self) -> None:
        # An error may have come before the array was finished.
        self._file.close()

    def __len__(self) -> int:
        return self._n_bytes // self._dtype.itemsize

    def append(self, values: ArrayLike | bytes) -> None:
        """Append values, or the bytes of values.

        Raises:
            DataError: If the disk is full.
        """
        content = values
        if not isinstance(content, bytes):
            content = np.ascontiguousarray(content, self._dtype).tobytes()
        with _full_disk():
            self._n_bytes += self._file.write(content)

    def finish(self) -> np.ndarray:
        """Return the array, ``[n]``, read-only; nothing can be appended afterwards.

        Raises:
            DataError: If the disk is full.
        """
        # Closing writes what is left, too.
        with _full_disk(), self._file:
            if self._n_bytes <= MAX_BYTES_IN_MEMORY:
                self._file.seek(0)
                return np.frombuffer(self._file.read(), self._dtype)
            self._file.flush()
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            return np.frombuffer(content, self._dtype)


@contextmanager
def _full_disk() -> Iterator[None]:
    """Turn an error of the system within the block into one that names the folder."""
    try:
        yield
    except OSError as error:
        # Without a folder that can be written to, tempfile has none to name.
        folder = Path(tempfile.tempdir or os.environ.get("TMPDIR", "/tmp"))
        raise DataError(
            f"cannot write a temporary file in {folder}: {error.strerror}; make room there, or set "
            "TMPDIR to a folder with room for a copy of the annotations",
            path=folder,
            name="TMPDIR",
        ) from None

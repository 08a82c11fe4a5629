"""Sealed files mapped into memory."""

from __future__ import annotations

import mmap
from contextlib import AbstractContextManager
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import open_bytes, open_sealed
from cusa.data.store.hdf5 import ArrayLocation


class MappedFile:
    """A sealed file that is mapped into memory read-only on first use; pickles leave out the map.

    A file that was replaced in the meantime is refused, since the offsets of arrays that were read
    from the old file need not hold for the new one.

    Args:
        path: The file.
        file_format: Name of its format.
        seal: The seal that it must carry.
        reads_ahead: Whether the system may read ahead of what is requested.
    """

    def __init__(
        self,
        path: Path,
        file_format: str,
        seal: str,
        reads_ahead: bool = True,
    ) -> None:
        self.path = path
        self._file_format = file_format
        self._seal = seal
        self._reads_ahead = reads_ahead
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}

    def opened(self) -> AbstractContextManager[h5py.File]:
        """Open the file with HDF5, to find where its arrays lie.

        Raises:
            StoreError: If it is missing, or another file than the one that was opened first.
        """
        return open_sealed(self.path, self._file_format, self._seal)

    def array(self, location: ArrayLocation) -> np.ndarray:
        """Return a read-only array over bytes of the file.

        Raises:
            StoreError: If the file is missing, was replaced, or is too short.
        """
        # An empty array may be at the end of the file, where there is nothing to map.
        if not location.n_bytes:
            return np.zeros(location.shape, location.dtype)

        if self._map is None:
            self._map = self._mapped()
        if location.offset < 0 or location.offset + location.n_bytes > len(self._map):
            raise StoreError(
                f"{self.path} is truncated or damaged ({location.name}); see cusa-store verify",
                path=self.path,
                name=location.name,
            )
        dtype = np.dtype(location.dtype)
        n_values = location.n_bytes // dtype.itemsize
        values = np.frombuffer(self._map, dtype, n_values, location.offset)
        return values.reshape(location.shape)

    def _mapped(self) -> mmap.mmap:
        with open_bytes(self.path, self._file_format, self._seal) as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # With random rows, pages that are read ahead are hardly ever needed next.
        if not self._reads_ahead:
            content.madvise(mmap.MADV_RANDOM)
        return content

"""The images of tars, read by their place within the tar."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from cusa.data.store.shards import DIGEST_BYTES
from cusa.data.tars.pairs import TarPairs
from cusa.data.tars.samples import TarError, state_of_file

# Images are read tar by tar; those of the next one may be read ahead.
MOST_OPEN = 2


class _OpenFile:
    """A file that is open as long as somebody uses it.

    Args:
        path: The file.

    Attributes:
        descriptor: Its descriptor.
    """

    def __init__(
        self,
        path: Path,
    ) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class TarImages:
    """The images of some tars; a split of the data set is a tar.

    The tars of the last images that were read stay open, also while threads read others.

    Args:
        pairs: The pairs of each tar.
    """

    def __init__(
        self,
        pairs: Sequence[TarPairs],
    ) -> None:
        self._pairs_of_tar: dict[str, TarPairs] = {}
        for tar_pairs in pairs:
            self._pairs_of_tar[tar_pairs.name] = tar_pairs
        self._opened = lru_cache(MOST_OPEN)(_OpenFile)

    def __reduce__(self) -> tuple[type[TarImages], tuple[Sequence[TarPairs]]]:
        return type(self), (tuple(self._pairs_of_tar.values()),)

    def path(
        self,
        split: str,
        row: int,
    ) -> Path:
        """Return the path of an image: the tar, and the path within it."""
        tar_pairs = self._pairs_of_tar[split]
        return tar_pairs.path.parent / tar_pairs.records.image_paths[row]

    def read(
        self,
        split: str,
        row: int,
    ) -> bytes:
        """Read the bytes of an image.

        Raises:
            TarError: If the tar cannot be read, or was changed since its pairs were read.
        """
        tar_pairs = self._pairs_of_tar[split]
        size, offset = int(tar_pairs.image_sizes[row]), int(tar_pairs.image_offsets[row])
        try:
            file = self._opened(tar_pairs.path)
            tar_pairs.require_unchanged(state_of_file(file.descriptor))
            return os.pread(file.descriptor, size, offset)
        except OSError as error:
            message = f"tar {tar_pairs.path} cannot be read ({error.strerror}); check the disk"
            raise TarError(message, path=tar_pairs.path, name=tar_pairs.name) from None

    def digests(
        self,
        split: str,
    ) -> np.ndarray:
        """Compute the sha256 of each image of a tar: uint8 ``[n_images, 32]``.

        Raises:
            TarError: As :meth:`read` raises it.
        """
        n_images = len(self._pairs_of_tar[split].records)
        digests = [hashlib.sha256(self.read(split, row)).digest() for row in range(n_images)]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)

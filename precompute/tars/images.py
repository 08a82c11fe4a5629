"""The images of tars, read by their place within the tar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cusa.data.errors import ImageError, first_line
from cusa.data.tars.pairs import TarPairs


class TarImages:
    """The images of some tars; a split of the data set is a tar.

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

    def path(
        self,
        split: str,
        row: int,
    ) -> Path:
        """Return the path of an image: the tar, and the path within it."""
        tar_pairs = self._pairs_of_tar[split]
        return tar_pairs.path.parent / tar_pairs.records[row].image_path

    def read(
        self,
        split: str,
        row: int,
    ) -> bytes:
        """Read the bytes of an image.

        Raises:
            ImageError: If the tar cannot be read, or has become shorter.
        """
        tar_pairs = self._pairs_of_tar[split]
        n_bytes = int(tar_pairs.image_sizes[row])
        try:
            with tar_pairs.path.open("rb") as file:
                file.seek(int(tar_pairs.image_offsets[row]))
                content = file.read(n_bytes)
        except OSError as error:
            content = b""
            reason = first_line(error)
        else:
            reason = "the tar has become shorter"
        if len(content) < n_bytes:
            path = self.path(split, row)
            raise ImageError(f"image {path} cannot be read ({reason})", path=path)
        return content

"""Where the bytes of images come from, and their preprocessing for a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cusa.data.errors import ImageError, first_line
from cusa.data.images import load_image, read_image_file
from cusa.data.records import Dataset
from cusa.data.texts import Texts
from cusa.precompute.teachers.base import Preprocessed, Teacher


class ImageSource(Protocol):
    """Where the bytes of a data set's images come from; picklable, for worker processes."""

    def path(self, split: str, row: int) -> Path:
        """Return the path of an image, as errors name it."""
        ...

    def read(self, split: str, row: int) -> bytes:
        """Read the bytes of an image file.

        Raises:
            ImageError: If there is no such file, or it cannot be read; the run may leave it out.
            CusaError: If the run has to stop.
        """
        ...


class ImageFiles:
    """The image files of a data set.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        # Columns rather than lists of texts: updates of the reference counts of a list's items
        # would copy its memory pages into every worker.
        self._image_paths: dict[str, Texts] = {}
        for split, records in dataset.splits.items():
            self._image_paths[split] = records.image_paths
        self._image_root = dataset.image_root

    def path(self, split: str, row: int) -> Path:
        """Return the path of an image file."""
        return self._image_root / self._image_paths[split][row]

    def read(self, split: str, row: int) -> bytes:
        """Read the bytes of an image file.

        Raises:
            ImageError: If there is no such file, or it cannot be read.
        """
        return read_image_file(self.path(split, row))


def read_image(path: Path, content: bytes, teacher: Teacher) -> Preprocessed:
    """Decode and preprocess an image for a teacher: float32 ``[3, h, w]``, or arrays by name.

    Args:
        path: The image file; errors name it.
        content: Its bytes.
        teacher: The teacher.

    Raises:
        ImageError: If it cannot be decoded or preprocessed.
    """
    assert teacher.preprocess is not None, "an image teacher brings its preprocessing"
    image = load_image(path, content)
    try:
        return teacher.preprocess(image)
    except Exception as error:
        # Image processors raise nearly anything on odd sizes.
        reason = first_line(error)
        message = f"image {path} cannot be preprocessed ({reason}); replace or remove it"
        raise ImageError(message, path=path) from None

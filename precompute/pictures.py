"""Detection of rows from before pictures were turned upright, and of the pictures affected."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cusa.data.errors import DataError, ImageError
from cusa.data.images import (
    DECODING,
    HUGE_PIXELS,
    exif_orientation,
    has_transparent_pixels,
    open_image,
)
from cusa.data.records import Dataset
from cusa.data.store.schema import TeacherSettings

# Most of the time goes into opening files, which threads overlap.
_THREADS = 8


def is_older(settings: TeacherSettings) -> bool:
    """Return whether rows are from before pictures were turned upright and laid over white."""
    is_imported = "imported" in settings.transform
    return not is_imported and DECODING.keys().isdisjoint(settings.transform)


def refuse_changed_pictures(
    dataset: Dataset,
    teacher_name: str,
    skip_errors: bool,
) -> None:
    """Refuse rows from before pictures were turned upright if any picture now decodes otherwise.

    Args:
        dataset: The data set; all its pictures are checked.
        teacher_name: The teacher's name in the store.
        skip_errors: Whether to ignore pictures that cannot be read, as they have no row.

    Raises:
        DataError: If a picture now decodes otherwise, or cannot be read; names the first.
    """

    def find_change(image_path: Path) -> str | None:
        try:
            return changed_decoding(image_path)
        except ImageError:
            if skip_errors:
                return None
            raise

    # Reading changes the filters of warnings, which threads share, so they are restored here.
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:
        changes = threads.map(find_change, _image_paths(dataset))
        for image_path, change in zip(_image_paths(dataset), changes, strict=True):
            if change is None:
                continue
            raise DataError(
                f"image {image_path} has {change}, which the row of teacher {teacher_name!r} "
                "ignores; pass another --out to make all rows again",
                path=image_path,
                name=teacher_name,
            )


def _image_paths(dataset: Dataset) -> Iterator[Path]:
    for records in dataset.splits.values():
        for image_path in records.image_paths:
            yield dataset.image_root / image_path


def changed_decoding(file_path: Path) -> str | None:
    """Describe why an image now decodes to other pixels than before images were turned upright.

    Reads the header; also the pixels of PNGs, whose EXIF block may come after them, and of files
    whose header names an alpha channel or a transparent colour.

    Returns:
        The reason; ``None`` if the pixels are the same.

    Raises:
        ImageError: As :func:`load_image`.
        SettingError: If ``CUSA_MAX_PIXELS`` is no number.
    """
    with open_image(file_path) as image:
        orientation = exif_orientation(image)
        # Pillow itself has always turned TIFFs.
        if orientation != 1 and image.format != "TIFF":
            return f"EXIF orientation {orientation}"
        if image.format in ("JPEG", "MPO") and image.width * image.height > HUGE_PIXELS:
            return f"more than {HUGE_PIXELS:,} pixels"
        if has_transparent_pixels(image):
            return "transparent pixels"
        return None

"""Folders of images, each with its captions in a file of the same name beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError
from cusa.data.image_folder import find_images
from cusa.data.parsing import read_json, read_text
from cusa.data.readers.columns import CAPTION_NAMES
from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Source
from cusa.data.readers.split_names import split_by_alias

LOCATION_FORMAT = "image {}"
DESCRIPTION = "images with captions beside them, NAME.jpg and NAME.txt (or .caption, .json)"
_SUFFIXES = (".txt", ".caption", ".json")
_MAX_SHOWN_IMAGES = 3
_LINE_ENDS = " \t\r"


def has_sidecars(image_paths: Sequence[Path]) -> bool:
    """Return whether any image has a caption file beside it."""
    return any(_sidecar(image_path) is not None for image_path in image_paths)


def read_sidecars(source: Source) -> Annotations:
    """Read the captions beside the images of a folder and its subfolders.

    A ``.txt`` or ``.caption`` file has a caption per line, a ``.json`` file a field such as
    ``caption``. Images in a subfolder that is named after a split belong to that split.

    Raises:
        DataError: If an image has no such file; names the first such images.
        FileFormatError: If a file cannot be read. This is raised when its row is read.
    """
    folder = source.path.absolute()
    image_paths = find_images(folder)
    without_captions = [path for path in image_paths if _sidecar(path) is None]
    if without_captions:
        shown = ", ".join(str(path) for path in without_captions[:_MAX_SHOWN_IMAGES])
        raise DataError(
            f"{source.path}: {len(without_captions):,} of {len(image_paths):,} images have no "
            f"caption file beside them ({shown}); write captions, or move the images away",
            path=without_captions[0],
        )
    rows = _rows(image_paths, folder, source)
    return Annotations(folder.name, LOCATION_FORMAT, rows, image_folder=source.path)


def _sidecar(image_path: Path) -> Path | None:
    """Return an image's caption file, or ``None``."""
    for suffix in _SUFFIXES:
        sidecar = image_path.with_suffix(suffix)
        if sidecar.is_file():
            return sidecar
    return None


def _rows(image_paths: Sequence[Path], folder: Path, source: Source) -> Iterator[AnnotationRow]:
    for number, image_path in enumerate(image_paths):
        relative = image_path.relative_to(folder)
        sidecar = _sidecar(image_path)
        assert sidecar is not None
        yield AnnotationRow(
            split=source.split or _split_of_folders(relative) or "train",
            image_path=relative.as_posix(),
            image_id=relative.as_posix(),
            captions=_read_captions(sidecar),
            caption_ids=(),
            number=number,
        )


def _split_of_folders(relative: Path) -> str | None:
    """Return the split that the outermost folder of a path is named after, or ``None``."""
    return split_by_alias(relative.parts[0].lower())


def _read_captions(sidecar: Path) -> tuple[str, ...]:
    if sidecar.suffix == ".json":
        return _captions_of_object(read_json(sidecar), sidecar)
    lines = [line.strip(_LINE_ENDS) for line in read_text(sidecar).split("\n")]
    return tuple(line for line in lines if line)


def _captions_of_object(content: Any, sidecar: Path) -> tuple[str, ...]:
    entry = Entry(content, sidecar, "")
    names = [name for name in CAPTION_NAMES if name in entry]
    return entry.captions([*names, "caption"][0])

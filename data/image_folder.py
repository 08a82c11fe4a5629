"""The image files of a folder."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import Image

from cusa.data.errors import DataError

# Pillow registers these formats, but cannot decode them by itself.
_UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the image files that Pillow reads, in lower case, with the dot."""
    # This call loads the formats; Image.OPEN is empty before it.
    format_of_suffix = Image.registered_extensions()
    readable_formats = Image.OPEN.keys() - _UNREADABLE_FORMATS
    suffixes = set()
    for suffix, format_name in format_of_suffix.items():
        if format_name in readable_formats:
            suffixes.add(suffix)
    return frozenset(suffixes)


def is_image_name(name: str) -> bool:
    """Return whether a file's suffix is that of an image."""
    return Path(name).suffix.lower() in image_suffixes()


def find_images(folder: Path) -> list[Path]:
    """Return the absolute paths of the image files in a folder and its subfolders, sorted.

    Hidden files and folders are left out; links to folders are followed.

    Args:
        folder: The folder.

    Raises:
        DataError: If it is not a folder, or has no images.
        OSError: If a folder cannot be read.
    """
    if not folder.is_dir():
        problem = "does not exist"
        if folder.exists():
            problem = "is not a folder"
        raise DataError(f"{folder} {problem}; pass a folder of images", path=folder)

    image_paths: list[Path] = []
    visited: set[str] = set()
    walk = os.walk(folder.absolute(), onerror=_raise, followlinks=True)
    for parent, folder_names, file_names in walk:
        real_parent = os.path.realpath(parent)
        if real_parent in visited:  # by a link back to a parent
            folder_names.clear()
            continue
        visited.add(real_parent)
        # os.walk does not descend into folders that are removed from its list.
        folder_names[:] = [name for name in folder_names if not _is_hidden(name)]
        for name in file_names:
            if is_image_name(name) and not _is_hidden(name):
                image_paths.append(Path(parent, name))

    if not image_paths:
        message = f"no images in {folder} or below it (.jpg, .png, .webp, …); pass another folder"
        raise DataError(message, path=folder)
    return sorted(image_paths)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _raise(error: OSError) -> None:
    raise error

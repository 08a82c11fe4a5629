"""Folders of images, each with its captions in a file of the same name beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError
from cusa.data.image_folder import find_images
from cusa.data.parsing import read_json, read_text, refuse_lone_surrogates, refuse_nul
from cusa.data.readers.columns import choose_caption_columns, refuse_columns
from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Source, field_names
from cusa.data.readers.pair_table import captions_of_columns
from cusa.data.readers.split_names import split_by_alias

LOCATION_FORMAT = "image {}"
DESCRIPTION = "images with captions beside them, NAME.jpg and NAME.txt (or .caption, .json)"
_TEXT_SUFFIXES = (".txt", ".caption")
_SUFFIXES = (*_TEXT_SUFFIXES, ".json")
_MAX_SHOWN_FILES = 3
_LINE_ENDS = " \t\r"


def has_sidecars(image_paths: Sequence[Path]) -> bool:
    """Return whether an image has captions beside it."""
    sidecars = _Sidecars()
    return any(sidecars.of_image(image_path) is not None for image_path in image_paths)


def _notes(folder: Path, image_paths: Sequence[Path]) -> tuple[str, ...]:
    """Say how many texts of a folder, given by its absolute path, are beside no image."""
    stems: set[Path] = set()
    parents: set[Path] = set()
    for path in image_paths:
        stems.add(path.with_suffix(""))
        parents.add(path.parent)
    alone = []
    for parent in sorted(parents):
        for path in sorted(parent.iterdir()):
            is_text = path.suffix.lower() in _TEXT_SUFFIXES and not path.name.startswith(".")
            if is_text and path.with_suffix("") not in stems:
                alone.append(path.relative_to(folder).as_posix())
    if not alone:
        return ()
    shown = ", ".join(alone[:_MAX_SHOWN_FILES])
    return (
        f"{folder}: {len(alone):,} texts are beside no image of their name: left out ({shown})",
    )


def read_sidecars(source: Source) -> Annotations:
    """Read the captions beside the images of a folder and its subfolders.

    A ``.txt`` or ``.caption`` file has a caption per line, a ``.json`` file a field such as
    ``caption``, or a list of captions. Images in a subfolder that is named after a split belong to
    that split.

    Raises:
        DataError: If an image has no such file; names the first such images.
        FileFormatError: If a file cannot be read. This is raised when its row is read.
    """
    folder = source.path.absolute()
    image_paths = source.image_paths or find_images(folder)
    sidecars = _Sidecars()
    without_captions = [path for path in image_paths if sidecars.of_image(path) is None]
    if without_captions:
        shown = ", ".join(str(path) for path in without_captions[:_MAX_SHOWN_FILES])
        raise DataError(
            f"{source.path}: {len(without_captions):,} of {len(image_paths):,} images have no "
            f"caption file beside them ({shown}); write captions, or move the images away",
            path=without_captions[0],
        )
    columns = source.columns
    caption_files = [sidecars.of_image(path) for path in image_paths]
    suffixes = {path.suffix.lower() for path in caption_files if path is not None}
    if ".json" in suffixes:
        columns = replace(columns, caption=None)
    refuse_columns(columns, DESCRIPTION, source.path)
    rows = _rows(image_paths, folder, source, sidecars)
    notes = _notes(folder, image_paths)
    return Annotations(folder.name, LOCATION_FORMAT, rows, notes, image_folder=source.path)


class _Sidecars:
    """Finds the files of images' captions; their suffixes may be in any case, as cameras have."""

    def __init__(self) -> None:
        self._of_folder: dict[Path, dict[tuple[str, str], Path]] = {}

    def of_image(self, image_path: Path) -> Path | None:
        """Return the file of an image's captions, if there is one."""
        folder = image_path.parent
        if folder not in self._of_folder:
            sidecars: dict[tuple[str, str], Path] = {}
            # Of names that differ in the suffix's case, the last in order is in lower case.
            for path in sorted(folder.iterdir()):
                suffix = path.suffix.lower()
                if suffix in _SUFFIXES and path.is_file():
                    sidecars[path.stem, suffix] = path
            self._of_folder[folder] = sidecars
        for suffix in _SUFFIXES:
            sidecar = self._of_folder[folder].get((image_path.stem, suffix))
            if sidecar is not None:
                return sidecar
        return None


def _rows(
    image_paths: Sequence[Path],
    folder: Path,
    source: Source,
    sidecars: _Sidecars,
) -> Iterator[AnnotationRow]:
    for number, image_path in enumerate(image_paths):
        relative = image_path.relative_to(folder)
        sidecar = sidecars.of_image(image_path)
        assert sidecar is not None
        _refuse_name_that_is_no_text(relative.as_posix(), image_path)
        yield AnnotationRow(
            split=source.split or _split_of_folders(relative) or "train",
            image_path=relative.as_posix(),
            image_id=relative.as_posix(),
            captions=_read_captions(sidecar, source),
            caption_ids=(),
            number=number,
        )


def _split_of_folders(relative: Path) -> str | None:
    """Return the split that the outermost folder of a path is called after, if any."""
    return split_by_alias(relative.parts[0])


def _refuse_name_that_is_no_text(name: str, image_path: Path) -> None:
    """Refuse a file name that no store can hold."""
    try:
        refuse_lone_surrogates(name)
    except ValueError:
        message = f"{name!r}: the image's name is not UTF-8; rename it"
        raise DataError(message, path=image_path, name=name) from None


def _read_captions(sidecar: Path, source: Source) -> tuple[str, ...]:
    if sidecar.suffix.lower() == ".json":
        return _captions_of_object(read_json(sidecar), sidecar, source)
    text = read_text(sidecar)
    refuse_nul(text, sidecar)
    lines = [line.strip(_LINE_ENDS) for line in text.split("\n")]
    return tuple(line for line in lines if line)


def _captions_of_object(content: Any, sidecar: Path, source: Source) -> tuple[str, ...]:
    if isinstance(content, list):  # of captions alone
        return Entry({"captions": content}, sidecar, "").captions("captions")
    entry = Entry(content, sidecar, "")
    columns = choose_caption_columns(field_names(content), source.columns, sidecar)
    return captions_of_columns(entry, columns)

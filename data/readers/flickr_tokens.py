"""Flickr8k's and Flickr30k's own captions: lines of ``NAME.jpg#0<TAB>caption``.

Lists of the images of each split may lie beside them. Examples are ``Flickr8k.token.txt`` beside
``Flickr_8k.trainImages.txt``, ``Flickr_8k.devImages.txt`` and ``Flickr_8k.testImages.txt``, and
``results_20130124.token``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cusa.data.errors import FileFormatError
from cusa.data.parsing import described, read_text
from cusa.data.readers.forms import AnnotationRow, Annotations, Source
from cusa.data.readers.split_names import split_by_alias

LOCATION_FORMAT = "line {}"
DESCRIPTION = "Flickr's lines of NAME.jpg#0<TAB>caption"
_LINE = re.compile(r"([^\t]+)#(\d+)\t(.*)")
# The names of split lists end in the split's name: trainImages.txt, flickr30k_test.txt, val.txt.
_LIST_NAME = re.compile(r"(?:.*[._-])?(train|valid|val|dev|test)(?:[._-]?images)?", re.IGNORECASE)


def is_token_line(line: str) -> bool:
    """Return whether a file with this first line has this form."""
    return _LINE.fullmatch(line.rstrip("\r\n")) is not None


def read_tokens(text: str, source: Source) -> Annotations:
    """Read captions, with the splits from the lists beside the file.

    Images that are in no list are left out, and a note says how many. Without lists, or if a split
    was given, all images belong to one split: the one given, the one that the file's name contains,
    or ``"train"``.

    Args:
        text: The contents of the file.
        source: The file.

    Raises:
        FileFormatError: If two lists of different splits name the same image. The error of a
            malformed line is raised when that line is read.
    """
    name = source.path.name.split(".")[0].lower()
    split_of_image: dict[str, str] = {}
    if source.split is None:
        split_of_image = _read_split_lists(source.path)
    if not split_of_image:
        split = source.split_by_name() or "train"
        return Annotations(name, LOCATION_FORMAT, _rows(text, source, split, {}))
    rows = _rows(text, source, None, split_of_image)
    notes = _notes(text, source, split_of_image)
    return Annotations(name, LOCATION_FORMAT, rows, notes)


def _rows(
    text: str,
    source: Source,
    split: str | None,
    split_of_image: Mapping[str, str],
) -> Iterator[AnnotationRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        image_name, caption_number, caption = _fields(line, source.path, number)
        row_split = split or split_of_image.get(image_name)
        if row_split is None:
            continue
        yield AnnotationRow(
            split=row_split,
            image_path=source.image_prefix + image_name,
            image_id=image_name,
            captions=(caption,),
            caption_ids=(f"{image_name}#{caption_number}",),
            number=number,
        )


def _fields(line: str, path: Path, number: int) -> tuple[str, str, str]:
    """Split a line into the image's name, the caption's number and the caption."""
    match = _LINE.fullmatch(line.rstrip("\r"))
    if match is None or "\0" in line:
        location = LOCATION_FORMAT.format(number)
        message = (
            f"{path} {location}: expected NAME.jpg#0, a tab and the caption, not {described(line)}"
        )
        raise FileFormatError(message, path=path, location=location)
    return match[1].strip(), match[2], match[3].strip(" \t\r")


def _read_split_lists(path: Path) -> dict[str, str]:
    """Return the split of each image by name, from the lists beside the captions."""
    split_of_image: dict[str, str] = {}
    for list_path in sorted(path.parent.glob("*.txt")):
        match = _LIST_NAME.fullmatch(list_path.stem)
        if match is None or list_path == path:
            continue
        split = split_by_alias(match[1].lower())
        assert split is not None
        for number, line in enumerate(read_text(list_path).splitlines(), 1):
            image_name = _listed_name(line)
            if not image_name:
                continue
            other_split = split_of_image.setdefault(image_name, split)
            if other_split != split:
                location = LOCATION_FORMAT.format(number)
                raise FileFormatError(
                    f"{list_path} {location}: image {described(image_name)} is also in the "
                    f"list of {other_split}; keep it in one",
                    path=list_path,
                    location=location,
                    name=image_name,
                )
    return split_of_image


def _listed_name(line: str) -> str:
    """Return the image that a line of a split list names; some lists leave out ``.jpg``."""
    image_name = line.strip()
    if image_name.isdigit():
        return f"{image_name}.jpg"
    return image_name


def _notes(text: str, source: Source, split_of_image: Mapping[str, str]) -> tuple[str, ...]:
    """Say how many images are in no list, and how many listed ones have no caption."""
    captioned = set(re.findall(r"^([^\t\n]+)#\d+\t", text, re.MULTILINE))
    notes = []
    n_unlisted = len(captioned - split_of_image.keys())
    if n_unlisted:
        notes.append(
            f"{source.path}: {n_unlisted:,} images are left out, as no split list names them"
        )
    n_without_caption = len(split_of_image.keys() - captioned)
    if n_without_caption:
        notes.append(
            f"{source.path}: {n_without_caption:,} images of the split lists are left out, as they "
            "have no caption"
        )
    return tuple(notes)

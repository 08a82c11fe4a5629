"""What a reader of annotations gets and gives, and the typed fields of an entry."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from cusa.data.errors import DataError, FileFormatError
from cusa.data.records import SPLITS

SPLIT_ALIASES = {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}
_EXACT_FLOATS = 2**53  # from here on, not every whole number is a float64
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """One or more captions of one image, as one entry of an annotation file has them.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``.
        image_path: Path of the image file, relative to the image root.
        image_id: Id of the image.
        captions: The captions as written.
        caption_ids: Their ids; empty: they are numbered within their image.
        number: Number of the entry in the file.
    """

    split: str
    image_path: str
    image_id: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...]
    number: int


@dataclass(frozen=True)
class Annotations:
    """An annotation file.

    Attributes:
        dataset_name: Name of the data set.
        location_format: What the file's entries are called: ``"line {}"`` takes an entry's number.
        rows: Its rows, read as they are asked for.
    """

    dataset_name: str
    location_format: str
    rows: Iterator[AnnotationRow]


@dataclass(frozen=True)
class Source:
    """An annotation file to read.

    Attributes:
        path: The file.
        split: Split of all its rows, or ``None``: as its rows say, or its name.
        image_folders: Folders that its images may lie in, the likeliest first.
    """

    path: Path
    split: str | None
    image_folders: Sequence[Path]

    def split_by_name(self) -> str | None:
        """The split that was given, or that the file's name tells, such as ``…_train.json``."""
        return self.split or _split_in(self.path.stem)

    def required_split(self) -> str:
        """The same, where there must be one.

        Raises:
            DataError: If none was given and the name tells none.
        """
        split = self.split_by_name()
        if split is None:
            raise DataError(
                f"{self.path}: its name tells no split; pass --dataset train={self.path} (or val=, test=)",
                path=self.path,
                name="split",
            )
        return split


@dataclass(frozen=True)
class Table:
    """The lines of a CSV or JSON Lines file.

    Attributes:
        columns: Names of its columns; of JSON Lines, the fields of its first line.
        lines: Number of each line, from 1, and what it holds.
    """

    columns: Collection[str]
    lines: Iterator[tuple[int, Any]]


Content = TypeVar("Content")


@dataclass(frozen=True)
class Form(Generic[Content]):
    """A form of annotation files: of JSON documents (``Content``: as parsed) or of tables.

    Attributes:
        description: What it looks like, for messages.
        recognises: Whether content is of this form.
        read: Reads content of this form.
    """

    description: str
    recognises: Callable[[Content], bool]
    read: Callable[[Content, Source], Annotations]


class Entry:
    """The named fields of one entry, each read with its type checked.

    Args:
        fields: The entry as parsed; anything but an object is refused.
        path: The file.
        location: Where in it.
    """

    __slots__ = ("_fields", "_location", "_path")

    def __init__(self, fields: Any, path: Path, location: str) -> None:
        self._path, self._location = path, location
        if not isinstance(fields, dict):
            self._refuse(f"must be an object with named fields, not {described(fields)}", "")
        self._fields: Mapping[str, Any] = fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def text(self, name: str) -> str:
        """A text that must be there and hold something.

        Raises:
            FileFormatError: If it is missing, empty, of another type, or holds a NUL character.
        """
        value = self._fields.get(name)
        if not isinstance(value, str) or not value:
            self._refuse_field(name, "must be a text", value)
        return self._without_nul(name, value)

    def optional_text(self, name: str) -> str | None:
        """A text, or ``None`` where it is missing, null or empty."""
        return None if self._fields.get(name) in (None, "") else self.text(name)

    def identifier(self, name: str) -> str | None:
        """An id: a text or a whole number; ``None`` where it is missing, null or empty.

        A whole number that was written as a float, as pandas does for a column with gaps, is that
        number: 3.0 is ``"3"``.

        Raises:
            FileFormatError: If it is anything else.
        """
        value = self._fields.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return self._without_nul(name, value)
        if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOATS:
            return str(int(value))
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse_field(name, "must be a text or a whole number", value)
        return str(value)

    def caption(self, name: str) -> str:
        """A caption: any text. Whether it has words is checked before the teachers run.

        Raises:
            FileFormatError: If it is missing, of another type, or holds a NUL character.
        """
        value = self._fields.get(name)
        if not isinstance(value, str):
            self._refuse_field(name, "must be a text", value)
        return self._without_nul(name, value)

    def captions(self, name: str) -> tuple[str, ...]:
        """A caption or a list of them.

        Raises:
            FileFormatError: If it is missing, or of other types.
        """
        value = self._fields.get(name)
        if not isinstance(value, list):
            return (self.caption(name),)
        for caption in value:
            if not isinstance(caption, str):
                self._refuse_field(
                    name, "must be a text or a list of texts; one of the list is", caption
                )
        return tuple(self._without_nul(name, caption) for caption in value)

    def entries(self, name: str) -> list[Entry]:
        """A list of entries.

        Raises:
            FileFormatError: If it is missing, or of other types.
        """
        values = self._fields.get(name)
        if not isinstance(values, list):
            self._refuse_field(name, "must be a list", values)
        return [
            Entry(value, self._path, f"{self._location}.{name}[{i}]")
            for i, value in enumerate(values)
        ]

    def split(self) -> str | None:
        """Its split, by any of its names; ``None`` if it says none."""
        value = self.optional_text("split")
        return None if value is None else canonical_split(value, self._path, self._location)

    def _without_nul(self, name: str, value: str) -> str:
        if "\0" in value:
            self._refuse(f"field {name!r} holds a NUL character; remove it", name)
        return value

    def _refuse_field(self, name: str, rule: str, value: Any) -> NoReturn:
        given = described(value) if name in self._fields else "missing"
        self._refuse(f"field {name!r} {rule}: {given}", name)

    def _refuse(self, problem: str, name: str) -> NoReturn:
        message = f"{self._path} {self._location}: {problem}"
        raise FileFormatError(message, path=self._path, location=self._location, name=name)


def described(value: Any) -> str:
    """A value of a JSON document in a few characters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def canonical_split(name: str, path: Path | None = None, location: str = "") -> str:
    """``"train"``, ``"val"`` or ``"test"`` for any name of it, such as ``"restval"``.

    Args:
        name: The name.
        path: The file that has it, for the message.
        location: Where in it.

    Raises:
        DataError: If it is no split's name.
    """
    split = SPLIT_ALIASES.get(name, name)
    if split not in SPLITS:
        place = " ".join(str(part) for part in (path, location) if part)
        legal = f"legal: {', '.join(SPLITS)} (or {', '.join(SPLIT_ALIASES)})"
        message = f"{place}: unknown split {described(name)}; {legal}".removeprefix(": ")
        raise DataError(message, path=path, location=location, name=name)
    return split


def _split_in(file_stem: str) -> str | None:
    """The first split that a file's name has as a word, also with a year: ``captions_val2017``."""
    for word in re.findall(r"[a-z]+", file_stem.lower()):
        split = SPLIT_ALIASES.get(word, word)
        if split in SPLITS:
            return split
    return None

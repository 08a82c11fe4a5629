"""Input and output of the readers of annotations, and the typed fields of an entry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from cusa.data.errors import DataError, FileFormatError
from cusa.data.parsing import described, refuse_half_characters
from cusa.data.readers.columns import USUAL_COLUMNS, ColumnNames
from cusa.data.readers.split_names import canonical_split, split_in_file_name

# From here on, not every whole number is a float64.
_EXACT_FLOATS = 2**53


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
        notes: Things its user should know, such as images that are in no split.
        image_folder: Folder that its image paths are relative to, where reading it tells.
    """

    dataset_name: str
    location_format: str
    rows: Iterator[AnnotationRow]
    notes: tuple[str, ...] = ()
    image_folder: Path | None = None


@dataclass(frozen=True)
class Source:
    """An annotation file to read.

    Attributes:
        path: The file.
        split: Split of all its rows, or ``None``: as its rows say, or its name.
        image_folders: Folders that its images may lie in, the likeliest first.
        image_prefix: Folder that its image paths begin in, below an image folder: ``"train/"``.
        columns: Columns of a table that the user named.
        unpack_folder: Where pictures that a file holds itself are written; ``None``: nowhere.
    """

    path: Path
    split: str | None
    image_folders: Sequence[Path]
    image_prefix: str = ""
    columns: ColumnNames = USUAL_COLUMNS
    unpack_folder: Path | None = None

    def split_by_name(self) -> str | None:
        """Return the split that was given, or that the name tells, such as ``…_train.json``."""
        return self.split or split_in_file_name(self.path.stem)

    def required_split(self) -> str:
        """Return the split that was given, or that the name tells, where there must be one.

        Raises:
            DataError: If none was given and the name tells none.
        """
        split = self.split_by_name()
        if split is None:
            raise DataError(
                f"{self.path}: its name tells no split; pass --dataset train={self.path} (or "
                "val=, test=)",
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


def field_names(value: Any) -> tuple[str, ...]:
    """Return the names of the fields of a parsed object; of anything else, none."""
    if isinstance(value, dict):
        return tuple(value)
    return ()


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

    def __init__(
        self,
        fields: Any,
        path: Path,
        location: str,
    ) -> None:
        self._path = path
        self._location = location
        if not isinstance(fields, dict):
            self.refuse(f"must be an object with named fields, not {described(fields)}", "")
        self._fields: Mapping[str, Any] = fields

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the fields."""
        return tuple(self._fields)

    def text(self, name: str) -> str:
        """Return a text that must be there and not be empty.

        Raises:
            FileFormatError: If it is missing, empty, of another type, or holds a NUL or half a
                character.
        """
        value = self.caption(name)
        if not value:
            self._refuse_field(name, "must be a text", value)
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or ``None`` where it is missing, null or empty."""
        if self._fields.get(name) in (None, ""):
            return None
        return self.text(name)

    def identifier(self, name: str) -> str | None:
        """Return an id, a text or a whole number; ``None`` where it is missing, null or empty.

        A whole number that was written as a float, as pandas does for a column with gaps, is that
        number: 3.0 is ``"3"``.

        Raises:
            FileFormatError: If it is anything else.
        """
        value = self._fields.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return self._checked(name, value)
        if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOATS:
            return str(int(value))
        # In Python, a truth value is a number, too.
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse_field(name, "must be a text or a whole number", value)
        return str(value)

    def caption(self, name: str) -> str:
        """Return a caption: any text. Whether it has words is checked before the teachers run.

        Raises:
            FileFormatError: If it is missing, of another type, or holds a NUL or half a character.
        """
        value = self._fields.get(name)
        if not isinstance(value, str):
            self._refuse_field(name, "must be a text", value)
        return self._checked(name, value)

    def captions(self, name: str) -> tuple[str, ...]:
        """Return the captions of a field that is one caption or a list of them.

        Raises:
            FileFormatError: If it is missing, or of other types.
        """
        value = self._fields.get(name)
        if not isinstance(value, list):
            return (self.caption(name),)
        captions = []
        for caption in value:
            if not isinstance(caption, str):
                rule = "must be a text or a list of texts; one of the list is"
                self._refuse_field(name, rule, caption)
            captions.append(self._checked(name, caption))
        return tuple(captions)

    def entries(self, name: str) -> list[Entry]:
        """Return a list of entries.

        Raises:
            FileFormatError: If it is missing, or of other types.
        """
        values = self._fields.get(name)
        if not isinstance(values, list):
            self._refuse_field(name, "must be a list", values)
        location = f"{self._location}.{name}"
        numbered = enumerate(values)
        return [Entry(value, self._path, f"{location}[{number}]") for number, value in numbered]

    def split(self, name: str = "split") -> str | None:
        """Return the entry's split, by any of its names; ``None`` if it says none."""
        split_name = self.optional_text(name)
        if split_name is None:
            return None
        return canonical_split(split_name, self._path, self._location)

    def _checked(
        self,
        name: str,
        value: str,
    ) -> str:
        if "\0" in value:
            self.refuse(f"field {name!r} holds a NUL character; remove it", name)
        # Rows in memory may hold such texts; of files, parsing refuses them.
        try:
            refuse_half_characters(value)
        except ValueError as error:
            self.refuse(f"field {name!r}: {error}; correct it", name)
        return value

    def _refuse_field(
        self,
        name: str,
        rule: str,
        value: Any,
    ) -> NoReturn:
        given = described(value) if name in self._fields else "missing"
        self.refuse(f"field {name!r} {rule}: {given}", name)

    def refuse(
        self,
        problem: str,
        name: str,
    ) -> NoReturn:
        """Raise the error of a problem with a field.

        Raises:
            FileFormatError: Always.
        """
        subject = f"{self._path} {self._location}".rstrip()
        message = f"{subject}: {problem}"
        raise FileFormatError(message, path=self._path, location=self._location, name=name)

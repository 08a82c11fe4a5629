"""What the annotation readers take and return, and the type-checked fields of an entry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cusa.data.errors import DataError, FileFormatError
from cusa.data.parsing import described, refuse_lone_surrogates
from cusa.data.readers.columns import USUAL_COLUMNS, ColumnNames
from cusa.data.readers.split_names import canonical_split, split_in_file_name

LEGAL_DATASETS = (
    "coco, flickr30k, flickr8k, demo, hf:OWNER/NAME[:SPLIT], an annotation file or a folder"
)
# From here on, float64 cannot represent every whole number.
_EXACT_FLOATS = 2**53


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """An entry of an annotation file: an image with one or more captions.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``.
        image_path: Path of the image file, relative to the image root.
        image_id: Id of the image.
        captions: The captions as written.
        caption_ids: The captions' ids, none of them empty; no ids if the file has none, and they
            are numbered per image.
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
    """The contents of an annotation file.

    Attributes:
        dataset_name: Name of the data set.
        location_format: Format of an entry's location, given its number, such as ``"line {}"``.
        rows: The rows, read lazily.
        notes: Things the user should know, such as images that are in no split.
        image_folder: Folder that the image paths are relative to, if the reader determines it.
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
        split: Split of all rows; ``None``: as the rows or the file's name say.
        image_folders: Folders where its images may be, the likeliest first.
        image_prefix: Prefix of its image paths, relative to an image folder, such as ``"train/"``.
        columns: Column names that the user gave.
        unpack_folder: Where embedded pictures are written; ``None``: nowhere.
        image_paths: Absolute paths of a folder's images, sorted, if they are known already.
    """

    path: Path
    split: str | None
    image_folders: Sequence[Path]
    image_prefix: str = ""
    columns: ColumnNames = USUAL_COLUMNS
    unpack_folder: Path | None = None
    image_paths: Sequence[Path] = ()

    def split_by_name(self) -> str | None:
        """Return the given split, or the one in the file's name, such as ``…_train.json``."""
        return self.split or split_in_file_name(self.path.stem)

    def required_split(self) -> str:
        """Return the given split, or the one in the file's name, which must exist.

        Raises:
            DataError: If no split was given and the name contains none.
        """
        split = self.split_by_name()
        if split is None:
            raise DataError(
                f"{self.path}: its name contains no split; pass --dataset train={self.path} (or "
                "val=, test=)",
                path=self.path,
                name="split",
            )
        return split


@dataclass(frozen=True)
class Table:
    """The rows of a table, such as a CSV, JSON Lines or Parquet file.

    Attributes:
        columns: Names of the columns; for JSON Lines, the fields of the first line.
        lines: The number of each row, counted as its location is, and its parsed contents.
    """

    columns: Collection[str]
    lines: Iterator[tuple[int, Any]]


def field_names(value: Any) -> tuple[str, ...]:
    """Return the field names of a parsed object, and none for anything else."""
    if isinstance(value, dict):
        return tuple(value)
    return ()


def is_address(text: str) -> bool:
    """Return whether a text is an address on the web."""
    return text.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Form:
    """A form of JSON documents with annotations.

    Attributes:
        description: What it looks like, for messages.
        recognises: Returns whether a document has this form.
        read: Reads a document of this form.
    """

    description: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any, Source], Annotations]


class Entry:
    """The named fields of one entry, each read with its type checked.

    Args:
        fields: The parsed entry, which must be an object.
        path: The file.
        location: Where the entry is in the file.

    Raises:
        FileFormatError: If the entry is not an object.
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
        """Return the names of the entry's fields."""
        return tuple(self._fields)

    def text(self, name: str) -> str:
        """Return a text, which must not be missing or empty.

        Raises:
            FileFormatError: If it is missing, empty, no text, or holds a NUL or half a character.
        """
        value = self.caption(name)
        if not value:
            self._refuse_field(name, "must be a text", value)
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or ``None`` if it is missing, null or empty.

        Raises:
            FileFormatError: If it is of another type, or holds a NUL character.
        """
        if self._fields.get(name) in (None, ""):
            return None
        return self.text(name)

    def identifier(self, name: str) -> str | None:
        """Return an id as text; ``None`` if it is missing, null or empty.

        An id is a text or a whole number. A float may stand for a whole number, as pandas writes it
        in a column with gaps: 3.0 becomes ``"3"``.

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
        # In Python, bool is a subclass of int.
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse_field(name, "must be a text or a whole number", value)
        return str(value)

    def caption(self, name: str) -> str:
        """Return a caption, which may be empty here; it is checked before the teachers run.

        Raises:
            FileFormatError: If it is missing, of another type, or holds a NUL or half a character.
        """
        value = self._fields.get(name)
        if not isinstance(value, str):
            self._refuse_field(name, "must be a text", value)
        return self._checked(name, value)

    def captions(self, name: str) -> tuple[str, ...]:
        """Return the captions of a field that holds a caption or a list of captions.

        Raises:
            FileFormatError: If it is missing or of another type, or a caption holds a NUL
                character.
        """
        value = self._fields.get(name)
        if not isinstance(value, list):
            return (self.caption(name),)
        captions = []
        for caption in value:
            if not isinstance(caption, str):
                rule = "must be a text or a list of texts, but has the element"
                self._refuse_field(name, rule, caption)
            captions.append(self._checked(name, caption))
        return tuple(captions)

    def entries(self, name: str) -> list[Entry]:
        """Return a field that is a list of entries.

        Raises:
            FileFormatError: If it is missing, or of another type.
        """
        values = self._fields.get(name)
        if not isinstance(values, list):
            self._refuse_field(name, "must be a list", values)
        location = f"{self._location}.{name}"
        numbered = enumerate(values)
        return [Entry(value, self._path, f"{location}[{number}]") for number, value in numbered]

    def split(self, name: str = "split") -> str | None:
        """Return the entry's split, which may be an alias; ``None`` if it names none.

        Raises:
            DataError: If it names an unknown split.
        """
        split_name = self.optional_text(name)
        if split_name is None:
            return None
        return canonical_split(split_name, self._path, self._location)

    def _checked(self, name: str, value: str) -> str:
        if "\0" in value:
            self.refuse(f"field {name!r} holds a NUL character; remove it", name)
        try:  # rows in memory are not parsed
            refuse_lone_surrogates(value)
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

    def refuse(self, problem: str, name: str) -> NoReturn:
        """Raise the error for a problem with a field.

        Raises:
            FileFormatError: Always.
        """
        message = f"{self._path} {self._location}".rstrip() + f": {problem}"
        raise FileFormatError(message, path=self._path, location=self._location, name=name)

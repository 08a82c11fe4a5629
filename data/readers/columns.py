"""Which columns of a table hold the image, its captions, its id and its split."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cusa.data.errors import FileFormatError

# The names that published files give to each column, in the spelling of :func:`normalised_name`. If
# a table has several of them, the first of the list is taken; without the first, it is an error.
IMAGE_NAMES = (
    "image",
    "image_path",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "image_name",
    "image_file",
    "img",
    "img_path",
    "path",
)
CAPTION_NAMES = (
    "caption",
    "captions",
    "text",
    "texts",
    "title",
    "comment",
    "sentence",
    "sentences",
    "description",
    "txt",
)
_IMAGE_ID_NAMES = ("image_id",)
_SPLIT_NAMES = ("split",)
_NUMBERED_CAPTION = re.compile(r"(?:caption|text|sentence|comment|description)_?(\d+)")
_MAX_SHOWN_COLUMNS = 10


@dataclass(frozen=True)
class ColumnNames:
    """The column names that the user gave; ``None``: one of the usual names.

    Attributes:
        image: Column of the images' paths.
        caption: Column of the captions; a cell is a text or, in JSON, a list of texts.
        image_id: Column of the images' ids; by default the path is the id.
        split: Column of the splits.
    """

    image: str | None = None
    caption: str | None = None
    image_id: str | None = None
    split: str | None = None


USUAL_COLUMNS = ColumnNames()


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table, as the table spells them.

    Attributes:
        image: Column of the images' paths.
        captions: Columns of the captions, one or more (``caption_0``, ``caption_1``, ...).
        image_id: Column of the images' ids; the table need not have it.
        split: Column of the splits; the table need not have it.
    """

    image: str
    captions: tuple[str, ...]
    image_id: str
    split: str


def normalised_name(name: str) -> str:
    """Return a column's name in lower case, with its words joined by underscores."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def has_pair_columns(columns: Collection[str]) -> bool:
    """Return whether a table has an image column and a caption column with usual names."""
    names = {normalised_name(column) for column in columns}
    return not names.isdisjoint(IMAGE_NAMES) and _has_captions(names)


def has_split_column(columns: Collection[str]) -> bool:
    """Return whether a table has a split column with its usual name."""
    return any(normalised_name(column) in _SPLIT_NAMES for column in columns)


def _has_captions(names: Collection[str]) -> bool:
    if not set(names).isdisjoint(CAPTION_NAMES):
        return True
    return any(_NUMBERED_CAPTION.fullmatch(name) for name in names)


def choose_columns(
    columns: Collection[str],
    chosen: ColumnNames,
    path: Path,
) -> TableColumns:
    """Choose the columns of images, captions, ids and splits of a table.

    Args:
        columns: The names of all columns, as the table spells them.
        chosen: The column names that the user gave.
        path: The table's file, for messages.

    Raises:
        FileFormatError: If the image column, the caption column or a column that the user named is
            missing, or several columns could be meant.
    """
    spelling_of_name: dict[str, str] = {}
    for column in columns:
        spelling_of_name.setdefault(normalised_name(column), column)
    chooser = _Chooser(columns, spelling_of_name, path)
    image = chooser.choose("image", chosen.image, IMAGE_NAMES)
    if image is None:
        chooser.refuse_none("image", IMAGE_NAMES)
    return TableColumns(
        image=image,
        captions=chooser.captions(chosen.caption),
        image_id=chooser.choose("id", chosen.image_id, _IMAGE_ID_NAMES) or "image_id",
        split=chooser.choose("split", chosen.split, _SPLIT_NAMES) or "split",
    )


@dataclass(frozen=True)
class _Chooser:
    """Finds columns of a table by name.

    Attributes:
        columns: All column names, as the table spells them.
        spelling_of_name: The table's spelling by normalised name.
        path: The table's file.
    """

    columns: Collection[str]
    spelling_of_name: Mapping[str, str]
    path: Path

    def choose(self, role: str, chosen: str | None, usual_names: Sequence[str]) -> str | None:
        """Return the column that the user named, or one with a usual name, or ``None``."""
        if chosen is not None:
            return self._column_named(role, chosen)
        spellings = []
        for name in usual_names:
            if name in self.spelling_of_name:
                spellings.append(self.spelling_of_name[name])
        if not spellings:
            return None
        if len(spellings) > 1 and usual_names[0] not in self.spelling_of_name:
            raise FileFormatError(
                f"{self.path}: the columns {', '.join(spellings)} could each be the {role}; say "
                f"which with --{role}-column",
                path=self.path,
                name=f"--{role}-column",
            )
        return spellings[0]

    def captions(self, chosen: str | None) -> tuple[str, ...]:
        """Return the caption column, or else the numbered caption columns in order."""
        column = self.choose("caption", chosen, CAPTION_NAMES)
        if column is not None:
            return (column,)
        numbered: list[tuple[int, str]] = []
        for name, spelling in self.spelling_of_name.items():
            match = _NUMBERED_CAPTION.fullmatch(name)
            if match is not None:
                numbered.append((int(match[1]), spelling))
        if not numbered:
            self.refuse_none("caption", CAPTION_NAMES)
        return tuple(spelling for _, spelling in sorted(numbered))

    def refuse_none(self, role: str, usual_names: Sequence[str]) -> NoReturn:
        """Raise the error of a table without a column for a role."""
        raise FileFormatError(
            f"{self.path}: none of the columns {self._shown_columns()} has a usual name of the "
            f"{role} column ({', '.join(usual_names)}); name it with --{role}-column",
            path=self.path,
            name=f"--{role}-column",
        )

    def _column_named(self, role: str, chosen: str) -> str:
        if chosen in self.columns:
            return chosen
        spelling = self.spelling_of_name.get(normalised_name(chosen))
        if spelling is None:
            raise FileFormatError(
                f"{self.path}: --{role}-column {chosen}: no such column; legal: "
                f"{self._shown_columns()}",
                path=self.path,
                name=f"--{role}-column",
            )
        return spelling

    def _shown_columns(self) -> str:
        return ", ".join(list(self.columns)[:_MAX_SHOWN_COLUMNS]) or "(none)"

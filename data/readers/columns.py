"""Which columns of a table hold the image, its captions, its id and its split."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cusa.data.errors import FileFormatError
from cusa.data.parsing import described
from cusa.data.shell import flag_of

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


def refuse_columns(chosen: ColumnNames, form: str, path: Path) -> None:
    """Refuse names of columns for data without columns, where they would be ignored.

    Args:
        chosen: The column names that the user gave.
        form: What the data are.
        path: Their file or folder, or their name.

    Raises:
        FileFormatError: Names the first option that was given.
    """
    options = {
        "image_column": chosen.image,
        "caption_column": chosen.caption,
        "id_column": chosen.image_id,
        "split_column": chosen.split,
    }
    for option, column in options.items():
        if column is not None:
            raise FileFormatError(
                f"{path}: {flag_of(option)} {column}: there are no columns in {form}; leave it out",
                path=path,
                name=option,
            )


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

    def select(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of a table's columns that are among these."""
        used_names = {self.image, *self.captions, self.image_id, self.split}
        return tuple(filter(used_names.__contains__, names))


def normalised_name(name: str) -> str:
    """Return a column's name in lower case, with its words joined by underscores."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def has_pair_columns(columns: Collection[str]) -> bool:
    """Return whether a table has a column of images and one of captions, by their names."""
    # Of rows in memory, names may be anything.
    names = {normalised_name(column) for column in columns if isinstance(column, str)}
    return not names.isdisjoint(IMAGE_NAMES) and _has_captions(names)


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
    chooser = _Chooser(columns, _spellings_of_names(columns, path), path)
    image = chooser.choose("image", chosen.image, IMAGE_NAMES)
    if image is None:
        chooser.refuse_none("image", IMAGE_NAMES)
    return TableColumns(
        image=image,
        captions=chooser.captions(chosen.caption),
        image_id=chooser.choose("id", chosen.image_id, _IMAGE_ID_NAMES) or "image_id",
        split=chooser.choose("split", chosen.split, _SPLIT_NAMES) or "split",
    )


def choose_caption_columns(
    columns: Collection[str],
    chosen: ColumnNames,
    path: Path,
) -> tuple[str, ...]:
    """Return the columns of captions alone, as :func:`choose_columns` does.

    Raises:
        FileFormatError: If there is none, or more than one could be meant.
    """
    return _Chooser(columns, _spellings_of_names(columns, path), path).captions(chosen.caption)


def _spellings_of_names(columns: Collection[str], path: Path) -> dict[str, list[str]]:
    """Return the columns by their normalised names, under which a table may have several."""
    spellings_of_name: dict[str, list[str]] = {}
    for column in columns:
        if not isinstance(column, str):
            raise FileFormatError(
                f"{path}: the columns' names must be texts, not {described(column)}; name them",
                path=path,
                name="columns",
            )
        spellings_of_name.setdefault(normalised_name(column), []).append(column)
    return spellings_of_name


@dataclass(frozen=True)
class _Chooser:
    """Finds columns of a table by name.

    Attributes:
        columns: All, as the table spells them.
        spellings_of_name: The spellings of each normalised name.
        path: The table's file.
    """

    columns: Collection[str]
    spellings_of_name: Mapping[str, Sequence[str]]
    path: Path

    def choose(self, role: str, chosen: str | None, usual_names: Sequence[str]) -> str | None:
        """Return the column that the user named, or one with a usual name, or ``None``."""
        if chosen is not None:
            return self._column_named(role, chosen)
        spellings: list[str] = []
        for name in usual_names:
            spellings += self.spellings_of_name.get(name, ())
            # The first usual name wins over the others.
            if spellings and name == usual_names[0]:
                break
        if not spellings:
            return None
        return self._only(role, spellings)

    def _only(
        self,
        role: str,
        spellings: Sequence[str],
    ) -> str:
        """Return the one column there is, and refuse several."""
        if len(spellings) == 1:
            return spellings[0]
        advice = f"say which by --{role}-column"
        if len(set(spellings)) == 1:
            advice = "rename all but one"
        raise FileFormatError(
            f"{self.path}: the columns {', '.join(spellings)} could each be the {role}; {advice}",
            path=self.path,
            name=f"{role}_column",
        )

    def captions(self, chosen: str | None) -> tuple[str, ...]:
        """Return the caption column, or else the numbered caption columns in order."""
        column = self.choose("caption", chosen, CAPTION_NAMES)
        if column is not None:
            return (column,)
        numbered: list[tuple[int, str]] = []
        for name, spellings in self.spellings_of_name.items():
            match = _NUMBERED_CAPTION.fullmatch(name)
            if match is not None:
                numbered.append((int(match[1]), self._only("caption", spellings)))
        if not numbered:
            self.refuse_none("caption", CAPTION_NAMES)
        return tuple(spelling for _, spelling in sorted(numbered))

    def refuse_none(self, role: str, usual_names: Sequence[str]) -> NoReturn:
        """Raise the error of a table without a column for a role."""
        raise FileFormatError(
            f"{self.path}: none of the columns {self._shown_columns()} has a usual name of the "
            f"{role} column ({', '.join(usual_names)}); name it with --{role}-column",
            path=self.path,
            name=f"{role}_column",
        )

    def _column_named(self, role: str, chosen: str) -> str:
        exact = [chosen] * list(self.columns).count(chosen)
        spellings = exact or self.spellings_of_name.get(normalised_name(chosen))
        if not spellings:
            raise FileFormatError(
                f"{self.path}: --{role}-column {chosen}: no such column; legal: "
                f"{self._shown_columns()}",
                path=self.path,
                name=f"{role}_column",
            )
        return self._only(role, spellings)

    def _shown_columns(self) -> str:
        return ", ".join(list(self.columns)[:_MAX_SHOWN_COLUMNS]) or "(none)"

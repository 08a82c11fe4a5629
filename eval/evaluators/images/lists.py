"""Readers of the image lists of published data sets: text tables and MATLAB files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from cusa.data.errors import FileFormatError, first_line
from cusa.data.foreign.guarded_process import Read, read_in_child
from cusa.data.lines import Place, read_lines

_LONGEST_NUMBER = 18  # digits that fit into int64


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that a list names.

    Attributes:
        id: Its path below the folder of the data set's images, "/" separated.
        path: The file, which may be missing.
        label: Number of its class.
        listed_at: The line of the list that names it.
    """

    id: str
    path: Path
    label: int
    listed_at: Place


@dataclass(frozen=True)
class Listing:
    """The test images of a data set; without a gallery, each is a query against all others."""

    queries: list[Listed]
    gallery: list[Listed] | None = None

    @property
    def images(self) -> list[Listed]:
        """Queries and gallery."""
        return [*self.queries, *(self.gallery or ())]


def first_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the files that exists, or the first of all if none does."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    return folder / names[0]


def non_blank_lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Yield the location and the stripped text of each line that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield Place(path, f"line {number}"), line.strip()


def read_table(
    path: Path, columns: str, header: bool = False, counted: bool = False
) -> Iterator[tuple[Place, list[str]]]:
    """Yield the location and the cells of each row of white-space separated columns.

    Args:
        path: The list.
        columns: Names of the columns, separated by spaces; the last one may contain spaces.
        header: Whether a line with these names precedes the rows.
        counted: Whether the number of images stands in a line before that.

    Raises:
        FileFormatError: If the list is missing, empty or malformed.
    """
    lines = non_blank_lines(path)
    no_line = Place(path, "line 1"), ""
    if counted:
        location, line = next(lines, no_line)
        whole_number(line, location, "number of images")
    if header:
        location, line = next(lines, no_line)
        if line.split() != columns.split():
            raise location.fault(
                f"expected the header {columns!r}, found {line[:80]!r}; restore the list"
            )
    n_columns = len(columns.split())
    is_empty = True
    for location, line in lines:
        row = line.split(None, n_columns - 1)
        if len(row) < n_columns:
            raise location.fault(f"expected {columns!r}, found {line[:80]!r}; restore the list")
        yield location, row
        is_empty = False
    if is_empty:
        raise FileFormatError(f"{path} is empty; expected lines of {columns!r}", path=path)


def read_values_by_id(path: Path) -> dict[int, tuple[Place, str]]:
    """Read a list of CUB with lines ``<id> <value>``: the location and value of each id."""
    values: dict[int, tuple[Place, str]] = {}
    for location, (id_text, value) in read_table(path, "id value"):
        number = whole_number(id_text, location, "id")
        if number in values:
            raise location.fault(
                f"the id {number} was used before, in {values[number][0]}; restore the list"
            )
        values[number] = location, value
    return values


def read_mat(path: Path, name_field: str, base_folder: Path, prefix: str) -> Iterator[Listed]:
    """Yield the images of the struct array ``annotations`` of a MATLAB file."""
    for number, (name, class_text) in enumerate(read_annotations(path, name_field), start=1):
        location = Place(path, f"annotation {number}")
        label = whole_number(class_text.removesuffix(".0"), location, "class")
        image = listed_image(base_folder, name, label, location)
        yield replace(image, id=prefix + image.id)


def read_annotations(path: Path, name_field: str) -> list[tuple[str, str]]:
    """Read the struct array ``annotations`` of a MATLAB file.

    It is read in a child process, since damaged files can crash or hang scipy.

    Args:
        path: The file.
        name_field: The field of the array that names the image.

    Returns:
        Name and class of each annotation, as strings.

    Raises:
        FileFormatError: If the file is missing or damaged, or has no such array; also if a name is
            blank or padded, since scipy pads with blanks what a damaged file lacks.
    """
    if not path.is_file():
        message = f"{path} does not exist; get it from the published data set"
        raise FileFormatError(message, path=path)
    content, _ = read_in_child(read_here, "MATLAB", path, name_field)
    for number, (name, _) in enumerate(content, start=1):
        if not name or name != name.strip():
            location = f"annotation {number}"
            message = (
                f"{path} {location}: {name[:80]!r} is not the name of an image; fetch the file "
                "again"
            )
            raise FileFormatError(message, path=path, location=location)
    return [(name, label) for name, label in content]


def read_here(path: str, name_field: str) -> Read:
    """Do the work of :func:`read_annotations` in this process."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True, variable_names="annotations")
        array = np.atleast_1d(content["annotations"])
        pairs = zip(array[name_field], array["class"], strict=True)
        return [[str(name), str(class_number)] for name, class_number in pairs], None
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise FileFormatError(
            f"{path} has no struct array 'annotations' with the fields {name_field} and class "
            f"({problem}); fetch the file again"
        ) from None


def whole_number(text: str, location: Place, meaning: str) -> int:
    """Parse a number written in digits alone.

    Args:
        text: The number as written.
        location: Where it stands, for the error.
        meaning: What it is, for the error, such as ``"class id"``.

    Raises:
        FileFormatError: If the text is not such a number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise location.fault(
            f"expected digits for the {meaning}, found {text[:80]!r}; restore the list"
        )
    return int(text)


def listed_image(base_folder: Path, relative: str, label: int, location: Place) -> Listed:
    """Return an image that a list names by its path below a folder.

    Args:
        base_folder: The folder.
        relative: The path as written in the list.
        label: Number of the image's class.
        location: The line of the list.

    Raises:
        FileFormatError: If the path leads out of the folder.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise location.fault(
            f"{relative!r} is not a path below {base_folder}; list images by paths within the data "
            "set"
        )
    return Listed(str(path), base_folder / path, label, location)

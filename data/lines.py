"""Lines and tables of published text files, with errors that name the file and the line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cusa.data.errors import FileFormatError


class Place(NamedTuple):
    """A line of a file; as text, ``FILE line 3``."""

    path: Path
    location: str

    def __str__(self) -> str:
        return f"{self.path} {self.location}".rstrip()

    def fault(self, message: str) -> FileFormatError:
        """Return the error for a fault in that line."""
        return FileFormatError(f"{self}: {message}", path=self.path, location=self.location)


def line_fault(file_path: Path, number: int, message: str) -> FileFormatError:
    """Return the error for a fault in a line of a file.

    Args:
        file_path: The file.
        number: The line, from 1.
        message: What is wrong, and what is expected.
    """
    location = f"line {number}"
    return FileFormatError(f"{file_path}, {location}: {message}", path=file_path, location=location)


def read_lines(file_path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, without line ends and without a byte order mark.

    Raises:
        FileFormatError: If the file is missing, a folder, or not UTF-8; names the line.
    """
    try:
        content = file_path.read_bytes()
    except FileNotFoundError:
        message = f"{file_path} does not exist; check the path, or put the file there"
        raise FileFormatError(message, path=file_path) from None
    except IsADirectoryError:
        raise FileFormatError(f"{file_path} is a folder, not a file", path=file_path) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        location = f"line {number}"
        message = f"{file_path}, {location}, is not UTF-8 text; save the file as UTF-8"
        raise FileFormatError(message, path=file_path, location=location) from None

    # str.splitlines would also break lines at characters that occur within sentences, such as
    # U+2028.
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def read_csv(file_path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a comma-separated file.

    Yields:
        The number of the last line of each row that is not empty, and its cells.

    Raises:
        FileFormatError: If the file cannot be read, or a row cannot be parsed, such as one with an
            open quotation mark or a cell of more than 131,072 characters.
    """
    reader = csv.reader((f"{line}\n" for line in read_lines(file_path)), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            message = f"{error}; expected comma-separated values"
            raise line_fault(file_path, reader.line_num, message) from None
        if row is None:
            return
        if row:
            yield reader.line_num, row


def find_columns(header: Sequence[str], names: Sequence[str], file_path: Path) -> list[int] | None:
    """Find columns by their names in a table's header.

    Args:
        header: Cells of the first line.
        names: The names, in lower case.
        file_path: The file, for messages.

    Returns:
        The number of each column, from 0; ``None`` if one is missing.

    Raises:
        FileFormatError: If several columns have one of the names.
    """
    cells = [cell.strip().strip('"').lower() for cell in header]
    if not set(names) <= set(cells):
        return None
    for name in names:
        if cells.count(name) > 1:
            raise line_fault(
                file_path, 1, f"{cells.count(name)} columns are named {name}; keep one"
            )
    return [cells.index(name) for name in names]

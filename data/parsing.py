"""Text, JSON and CSV from files, with errors that name the file and the line.

The parsers of the standard library raise exceptions of many classes on damaged input
(``RecursionError`` on deep nesting, ``ValueError`` on a number of 5,000 digits). Here all of them
become :class:`cusa.data.errors.FileFormatError`.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from cusa.data.errors import FileFormatError, first_line

# Characters of a value that a message quotes.
_MAX_SHOWN = 60
_CELL_ENDS = " \t\r\n"
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(file_path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        FileFormatError: If the file is missing, a folder, or not UTF-8.
    """
    try:
        return file_path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileFormatError(f"{file_path} does not exist", path=file_path) from None
    except IsADirectoryError:
        raise FileFormatError(f"{file_path} is a folder, not a file", path=file_path) from None
    except UnicodeDecodeError as error:
        raise not_utf8(file_path, error) from None


def read_text_lines(file_path: Path) -> Iterator[str]:
    """Read the lines of a UTF-8 text file one by one, with their ends, as :func:`read_text` does.

    Raises:
        FileFormatError: If the file is not UTF-8; raised when that line is read.
    """
    try:
        with file_path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError:
        # Read again for the byte at fault: the error counts from where the last block began.
        read_text(file_path)
        raise


def not_utf8(file_path: Path, error: UnicodeDecodeError) -> FileFormatError:
    """Return the error of a file that is no UTF-8 text; it names the byte."""
    location = f"byte {error.start}"
    message = f"{file_path} is not UTF-8 text ({location}); save it as UTF-8"
    return FileFormatError(message, path=file_path, location=location)


def read_json(file_path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileFormatError: If it cannot be read or parsed; see :func:`parse_json`.
    """
    return parse_json(read_text(file_path), file_path)


def parse_json(text: str, file_path: Path, line: int | None = None) -> Any:
    """Parse JSON text.

    Args:
        text: The text.
        file_path: The file that it comes from, for messages.
        line: The line of the file, where the text is one line of it.

    Returns:
        What :func:`json.loads` returns, without NaN, infinity, or lone surrogates.

    Raises:
        FileFormatError: If the text is not JSON, nests too deeply, or holds NaN, a number of
            thousands of digits, or a lone surrogate.
    """
    location = ""
    if line is not None:
        location = f"line {line}"
    try:
        content = _DECODER.decode(text)
        if _SURROGATE_ESCAPE.search(text):
            _refuse_surrogates_within(content)
    except json.JSONDecodeError as error:
        location = location or f"line {error.lineno}"
        problem = error.msg
    except RecursionError:
        problem = "it nests too deeply"
    except ValueError as error:
        problem = first_line(error)
    else:
        return content
    subject = f"{file_path} {location}".strip()
    message = f"{subject} is not valid JSON ({problem}); repair it or download it again"
    raise FileFormatError(message, path=file_path, location=location) from None


def parse_json_lines(lines: Iterable[str], file_path: Path) -> Iterator[tuple[int, Any]]:
    """Parse JSON Lines.

    Args:
        lines: The lines, with or without their ends.
        file_path: The file that they come from, for messages.

    Yields:
        The number of each line that is not blank, from 1, and its content.

    Raises:
        FileFormatError: If a line cannot be parsed; names it.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parse_json(line.removesuffix("\n"), file_path, number)


def parse_csv(
    lines: Iterable[str],
    file_path: Path,
    separator: str = ",",
) -> tuple[tuple[str, ...], Iterator[tuple[int, dict[str, str]]]]:
    """Parse CSV, or a table with another separator, with a header row.

    Spaces, tabs and line breaks at both ends of every cell are stripped. Columns without a name,
    such as the row numbers that pandas writes, are left out.

    Args:
        lines: The lines, with their ends.
        file_path: The file that they come from, for messages.
        separator: The character between two cells.

    Returns:
        The names of the columns, and the rows: the line that each begins on, counted from 1, and
        its cells by column name.

    Raises:
        FileFormatError: If the text is not CSV, holds a NUL character, names a column twice, or a
            row does not have as many cells as the header. The rows are parsed lazily, and so are
            their errors.
    """
    rows = _csv_rows(lines, file_path, separator)
    line, header = next(rows, (1, []))
    names = [name for name in header if name]
    repeated = Counter(names) - Counter(set(names))
    if repeated:
        _refuse_csv(file_path, line, f"the header names {', '.join(sorted(repeated))} twice")
    return tuple(names), _named_cells(rows, header, file_path)


def _named_cells(
    rows: Iterator[tuple[int, list[str]]], header: list[str], file_path: Path
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line that each row begins on, and its cells by the names of the columns."""
    for line, cells in rows:
        if len(cells) != len(header):
            problem = (
                f"it has {len(cells)} cells, the header {len(header)}; a cell that holds the "
                "separator needs quotes"
            )
            _refuse_csv(file_path, line, problem)
        named_cells = dict(zip(header, cells, strict=True))
        named_cells.pop("", None)
        yield line, named_cells


def _csv_rows(
    lines: Iterable[str],
    file_path: Path,
    separator: str,
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each row begins on, and its cells; blank lines are left out."""
    checked_lines = _without_nul(lines, file_path)
    reader = csv.reader(checked_lines, delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            _refuse_csv(file_path, line, str(error))
        if cells is None:
            return
        cells = [cell.strip(_CELL_ENDS) for cell in cells]
        if cells not in ([], [""]):  # a blank line
            yield line, cells


def _without_nul(lines: Iterable[str], file_path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        refuse_nul(line, file_path, number)
        yield line


def _refuse_csv(file_path: Path, line: int, problem: str) -> NoReturn:
    location = f"line {line}"
    message = f"{file_path} {location} is not valid CSV ({problem}); repair it"
    raise FileFormatError(message, path=file_path, location=location)


def refuse_nul(text: str, file_path: Path, line_number: int = 1) -> None:
    """Refuse the text of a file with a NUL character, as binary data and UTF-16 text have.

    Args:
        text: The text.
        file_path: The file that it comes from, for messages.
        line_number: The line of the file that it begins with.

    Raises:
        FileFormatError: If it holds one; names the line.
    """
    if "\0" not in text:
        return
    line_breaks = text.partition("\0")[0].count("\n")
    location = f"line {line_number + line_breaks}"
    message = (
        f"{file_path} {location} holds a NUL character, as binary data do; save it as UTF-8 if it "
        "is text, or pass another file"
    )
    raise FileFormatError(message, path=file_path, location=location)


def refuse_lone_surrogates(text: str) -> None:
    """Refuse text that UTF-8 cannot hold.

    Raises:
        ValueError: If it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, a lone surrogate") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


# json.loads would make a decoder for each line of a file.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_surrogates_within(content: Any) -> None:
    """Refuse lone surrogates in any key or text of parsed JSON."""
    # A stack instead of recursion: documents may nest as deeply as the parser goes.
    unchecked = [content]
    while unchecked:
        value = unchecked.pop()
        if isinstance(value, str):
            refuse_lone_surrogates(value)
        elif isinstance(value, dict):
            unchecked.extend(value.keys())
            unchecked.extend(value.values())
        elif isinstance(value, list):
            unchecked.extend(value)


def described(value: Any) -> str:
    """Describe a value of a JSON document for a message, shortened if it is long."""
    descriptions = {type(None): "null", dict: "an object", list: "a list"}
    text = descriptions.get(type(value)) or repr(value)
    if len(text) <= _MAX_SHOWN:
        return text
    return f"{text[:_MAX_SHOWN]}…"

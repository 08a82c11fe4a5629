"""Files of the ids of embedding rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import EmbeddingsError, FileFormatError, first_line
from cusa.data.foreign.npy import open_npy
from cusa.data.parsing import read_json, read_text

LEGAL_IDS = "a .txt file with one per line, a .json list, or an .npy array of integers or strings"
_PRINTED_BYTES = re.compile(r"""b(['"]).*\1""", re.DOTALL)


def read_ids(file_path: Path) -> list[str]:
    """Read a file of ids.

    Args:
        file_path: ``.txt`` (one id per line; white space around it is stripped), ``.json`` (a list)
            or ``.npy``. An integer becomes the text of its digits. ``b'id0'``, as Python prints
            bytes, is refused: whether it means ``id0`` is not for the reader to guess.

    Raises:
        FileFormatError: If the file is missing, or holds anything else.
    """
    if not file_path.exists():
        raise FileFormatError(f"ids {file_path} do not exist; legal: {LEGAL_IDS}", path=file_path)
    suffix = file_path.suffix.lower()
    if suffix == ".npy":
        return _ids_of_array(open_npy(file_path), file_path)
    if suffix == ".txt":
        return _ids_of_lines(read_text(file_path), file_path)
    if suffix == ".json":
        return _ids_of_json(read_json(file_path), file_path)
    raise FileFormatError(
        f"ids {file_path} have an unknown suffix; legal: {LEGAL_IDS}",
        path=file_path,
    )


def _ids_of_json(content: Any, file_path: Path) -> list[str]:
    if not isinstance(content, list):
        kind = type(content).__name__
        message = f"ids {file_path} are a JSON {kind}; legal: a list of strings or integers"
        raise FileFormatError(message, path=file_path)
    # Without this check, true and null of JSON would become the texts True and None.
    for number, item_id in enumerate(content):
        if not isinstance(item_id, (str, int)) or isinstance(item_id, bool):
            raise FileFormatError(
                f"ids {file_path}: entry {number} is {item_id!r}; legal: strings or integers",
                path=file_path,
                location=f"entry {number}",
            )
    return ids_as_texts(content, file_path)


def check_ids(
    item_ids: Sequence[str],
    n_rows: int,
    file_path: Path,
    ids_path: Path,
    unit: str = "rows",
) -> None:
    """Refuse ids that are not unique, or not one for each row.

    Args:
        item_ids: The ids.
        n_rows: Number of rows.
        file_path: The file of the rows, for messages.
        ids_path: The file of the ids, for messages.
        unit: What the rows are called in messages.

    Raises:
        EmbeddingsError: If there are more or fewer ids than rows, there are no rows, or an id is
            repeated.
    """
    if len(item_ids) != n_rows:
        raise EmbeddingsError(
            f"{file_path} holds {n_rows:,} {unit}, but {ids_path} {len(item_ids):,} ids; there "
            "must be one each",
            path=ids_path,
        )
    if not n_rows:
        raise EmbeddingsError(f"{file_path} holds no {unit}; give every item one", path=file_path)

    repeated = [item_id for item_id, count in Counter(item_ids).items() if count > 1]
    if repeated:
        raise EmbeddingsError(
            f"{ids_path}: {len(repeated):,} ids are given more than once, the first "
            f"{repeated[0]!r}; keep one row of each",
            path=ids_path,
            name=repeated[0],
        )


def _ids_of_lines(text: str, file_path: Path) -> list[str]:
    # Unlike str.splitlines, this splits at newlines only.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return ids_as_texts(map(str.strip, lines), file_path, "line", 1)


def _ids_of_array(array: np.ndarray, file_path: Path) -> list[str]:
    if array.ndim != 1:
        message = f"{file_path} is an array of shape {array.shape}; legal: one id per row, [n]"
        raise FileFormatError(message, path=file_path)
    # Byte strings are ids, too, if they are UTF-8.
    if array.dtype.kind == "S":
        array = _decoded(array, file_path)
    if array.dtype.kind not in "iuU":
        message = f"{file_path} holds {array.dtype}; legal: integers or strings"
        raise FileFormatError(message, path=file_path)
    return ids_as_texts(array.tolist(), file_path)


def ids_as_texts(
    item_ids: Iterable[Any],
    file_path: Path,
    unit: str = "entry",
    first_number: int = 0,
) -> list[str]:
    """Convert ids, integers or texts, to texts.

    Args:
        item_ids: The ids.
        file_path: The file that they come from, for messages.
        unit: What an id's place is called in messages, such as ``"line"``.
        first_number: Number of the first id's place.

    Raises:
        FileFormatError: If an id is empty, or is bytes as Python prints them.
    """
    texts = list(map(str, item_ids))
    for number, text in enumerate(texts, first_number):
        problem = ""
        if not text:
            problem = "empty; write the id of each row"
        elif _PRINTED_BYTES.fullmatch(text):
            problem = f"{text} is how Python prints bytes; write the text itself"
        if problem:
            location = f"{unit} {number}"
            message = f"ids {file_path}, {location}: {problem}"
            raise FileFormatError(message, path=file_path, location=location)
    return texts


def _decoded(array: np.ndarray, file_path: Path) -> np.ndarray:
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        message = f"{file_path} is not UTF-8 ({first_line(error)}); save texts"
        raise FileFormatError(message, path=file_path) from None

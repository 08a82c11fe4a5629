"""Embedding rows in files of their own, with an id for each.

One reader serves ``cusa-store import`` and ``cusa-eval --image-embeddings``, and reads all that the
one writer writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import EmbeddingsError, FileFormatError, first_line
from cusa.data.files import atomic_file
from cusa.data.foreign.hdf5 import read_h5_rows
from cusa.data.foreign.npy import open_npy
from cusa.data.parsing import read_json, read_text

ROWS, IDS = "embeddings", "ids"  # names within HDF5 and safetensors files
_EARLIER_ROWS = "rows"  # what cusa-store export called them in safetensors files
LEGAL = ".npy, .safetensors, or .h5 (FILE.h5:/group/name for what lies within)"
LEGAL_IDS = "a .txt file with one per line, a .json list, or an .npy array of integers or strings"
_PRINTED_BYTES = re.compile(r"""b(['"]).*\1""", re.DOTALL)
_IDS_AT_ONCE = 65_536


@dataclass(frozen=True)
class ForeignRows:
    """Rows from elsewhere.

    Attributes:
        ids: What each row is of, all different: image ids, caption ids, paths, or texts.
        rows: float or int ``[n, d]``, as the file holds them: not normalised, nor known to be
            finite.
        source: Where they come from.
    """

    ids: Sequence[str]
    rows: np.ndarray
    source: str


def read_rows(path: Path, ids: Path | None = None) -> ForeignRows:
    """Read embedding rows and what each of them is of.

    Args:
        path: ``.npy``; ``.safetensors`` with a tensor ``embeddings``; ``.h5`` with datasets
            ``embeddings`` and ``ids``, or ``FILE.h5:/group/name``: a group with these two, or a
            dataset with ``ids`` beside it.
        ids: Of the rows, in their order: ``.txt`` (one per line), ``.json`` (a list) or ``.npy``
            (integers or strings); ``None``: those within the ``.h5``, or else ``NAME.ids.json``
            beside ``NAME.npy``, as ``cusa-store export`` writes it.

    Raises:
        FileFormatError: If a file is missing, damaged, or holds something else.
        EmbeddingsError: If ids are missing, given twice, or not as many as the rows.
    """
    file, inside = _split(path)
    if not file.exists():
        raise FileFormatError(f"embeddings {file} do not exist; legal: {LEGAL}", path=file)
    rows, inner = _read_file(file, inside)
    if rows.dtype.kind not in "fiu":
        raise FileFormatError(
            f"{path} holds {rows.dtype}, not numbers; save float16, float32 or float64", path=file
        )
    if rows.ndim != 2 or not rows.shape[1]:
        raise FileFormatError(
            f"{path} holds an array of shape {rows.shape}; legal: one row per item, [n, d]",
            path=file,
        )
    ids_file = ids if ids is not None else _ids_beside(file)
    if ids is None and inner is not None:
        names, ids_source = _as_texts(inner, file, f"{file}: {IDS}"), file
    elif ids_file is not None:
        names, ids_source = read_ids(ids_file), ids_file
    else:
        raise EmbeddingsError(
            f"embeddings {path} have no ids; pass a file of them: {LEGAL_IDS}", path=file
        )
    _check_ids(names, len(rows), path, ids_source)
    return ForeignRows(names, rows, str(path))


def write_rows(
    path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    dtype: np.dtype,
    ids: Sequence[str],
    about: str,
) -> Path:
    """Write embedding rows to a file of their own, and their ids beside it.

    Args:
        path: ``.npy`` (written block by block) or ``.safetensors`` (tensor ``embeddings``; passes
            through memory).
        blocks: The rows, some at a time.
        shape: Of all rows, ``[n, d]``.
        dtype: Of the rows.
        ids: Of the rows, in their order.
        about: What made them; kept as ``settings`` in the metadata of a ``.safetensors``.

    Returns:
        Path of the ids, ``NAME.ids.json``: a JSON list.

    Raises:
        FileFormatError: If the suffix is another.
        EmbeddingsError: If a file of the other suffix has its own ids under that name.
    """
    if path.suffix in (".npy", ".safetensors"):
        _refuse_ids_of_another(path, ids)
    if path.suffix == ".npy":
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(block.tobytes())
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        with atomic_file(path) as temporary:
            temporary.write_bytes(save({ROWS: np.concatenate(list(blocks))}, {"settings": about}))
    else:
        raise FileFormatError(f"{path}: rows are exported to .npy or .safetensors", path=path)
    ids_path = _beside(path)
    with atomic_file(ids_path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for start in range(0, max(1, len(ids)), _IDS_AT_ONCE):
            items = json.dumps(list(ids[start : start + _IDS_AT_ONCE]), ensure_ascii=False)[1:-1]
            out.write(("[" if start == 0 else ",\n") + items)
        out.write("]\n")
    return ids_path


def read_ids(path: Path) -> list[str]:
    """Read a file of ids.

    Args:
        path: ``.txt`` (one per line, without the white space around it), ``.json`` (a list) or
            ``.npy``; integers are ids as their digits. ``b'id0'``, as Python prints bytes, is
            refused: whether it means ``id0`` is not for the reader to guess.

    Raises:
        FileFormatError: If the file is missing, or holds something else.
    """
    if not path.exists():
        raise FileFormatError(f"ids {path} do not exist; legal: {LEGAL_IDS}", path=path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _as_ids(open_npy(path), path, str(path))
    if suffix == ".txt":
        return _refuse_printed_bytes(_lines(read_text(path), path), path, "line", 1)
    if suffix != ".json":
        raise FileFormatError(f"ids {path} have an unknown suffix; legal: {LEGAL_IDS}", path=path)
    content = read_json(path)
    if not isinstance(content, list):
        message = (
            f"ids {path} are a json {type(content).__name__}; legal: a list of strings or integers"
        )
        raise FileFormatError(message, path=path)
    for number, name in enumerate(content):
        if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
            raise FileFormatError(
                f"ids {path}: entry {number} is {name!r}; legal: strings or integers",
                path=path,
                location=f"entry {number}",
            )
    return _refuse_printed_bytes([str(name) for name in content], path, "entry", 0)


def _split(path: Path) -> tuple[Path, str]:
    """``FILE.h5:/group/name`` as file and name within."""
    for mark in (".h5:", ".hdf5:"):
        head, colon, tail = str(path).partition(mark)
        if colon:
            return Path(head + mark[:-1]), tail
    return path, ""


def _beside(path: Path) -> Path:
    return path.with_suffix(".ids.json")


def _refuse_ids_of_another(path: Path, ids: Sequence[str]) -> None:
    """Keep ``x.safetensors`` from giving ``x.npy`` its ids, which ``x.ids.json`` has for both."""
    other = path.with_suffix(".npy" if path.suffix == ".safetensors" else ".safetensors")
    ids_path = _ids_beside(path)
    if ids_path is not None and other.exists() and read_ids(ids_path) != list(ids):
        raise EmbeddingsError(
            f"{ids_path} has the ids of {other}, which are others; export to another name than {path}",
            path=ids_path,
        )


def _ids_beside(path: Path) -> Path | None:
    return _beside(path) if _beside(path).is_file() else None


def _read_file(path: Path, inside: str) -> tuple[np.ndarray, list[Any] | None]:
    """Rows, and the ids within the file if there are."""
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return read_h5_rows(path, inside, ROWS, IDS)
    if suffix == ".npy":
        return open_npy(path), None
    if suffix == ".safetensors":
        return _read_safetensors(path), None
    raise FileFormatError(f"embeddings {path} have an unknown suffix; legal: {LEGAL}", path=path)


def _read_safetensors(path: Path) -> np.ndarray:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            held = sorted(file.keys())
            name = next((name for name in (ROWS, _EARLIER_ROWS) if name in held), None)
            tensor: Any = None if name is None else file.get_tensor(name)
    except PermissionError:
        raise
    except Exception as error:  # torch's own, too: it may not know the type of a tensor
        problem = first_line(error)
        raise FileFormatError(
            f"{path} cannot be read as safetensors ({problem}); it is damaged, or not what its suffix says",
            path=path,
        ) from None
    if tensor is None:
        names = ", ".join(held[:5]) or "nothing"
        raise FileFormatError(
            f"{path} has no tensor {ROWS!r}, it holds {names}; name it so", path=path
        )
    is_known_to_numpy = str(tensor.dtype) in ("torch.float16", "torch.float32", "torch.float64")
    if tensor.is_floating_point() and not is_known_to_numpy:
        tensor = tensor.float()
    rows: np.ndarray = tensor.numpy()
    return rows


def _check_ids(names: Sequence[str], n_rows: int, path: Path, ids_source: Path) -> None:
    """Refuse ids that are not one for each row, or not all different."""
    if len(names) != n_rows:
        raise EmbeddingsError(
            f"{path} holds {n_rows:,} rows, but {ids_source} {len(names):,} ids; there must be one each",
            path=ids_source,
        )
    if not n_rows:
        raise EmbeddingsError(f"{path} holds no rows; give every item one", path=path)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise EmbeddingsError(
            f"{ids_source}: {len(twice):,} ids are given more than once, the first {twice[0]!r}; keep one row of each",
            path=ids_source,
            name=twice[0],
        )


def _lines(text: str, path: Path) -> list[str]:
    lines = text.split("\n")  # not splitlines: it takes other characters for ends of lines
    if lines[-1] == "":
        lines.pop()
    names = [line.strip() for line in lines]
    if "" in names:
        location = f"line {names.index('') + 1}"
        raise FileFormatError(
            f"ids {path}, {location}: empty; write the id of one row per line",
            path=path,
            location=location,
        )
    return names


def _refuse_printed_bytes(names: list[str], path: Path, unit: str, first: int) -> list[str]:
    for number, name in enumerate(names, first):
        if _PRINTED_BYTES.fullmatch(name):
            raise FileFormatError(
                f"ids {path}, {unit} {number}: {name} is how Python prints bytes; write the text itself",
                path=path,
                location=f"{unit} {number}",
            )
    return names


def _as_ids(array: np.ndarray, path: Path, where: str) -> list[str]:
    if array.ndim != 1:
        raise FileFormatError(
            f"{where} is an array of shape {array.shape}; legal: one id per row, [n]", path=path
        )
    if array.dtype.kind == "S":
        array = _decoded(array, path, where)
    if array.dtype.kind not in "iuU":
        raise FileFormatError(f"{where} holds {array.dtype}; legal: integers or strings", path=path)
    return _as_texts(array.tolist(), path, where)


def _as_texts(names: Sequence[Any], path: Path, where: str) -> list[str]:
    """Integers or texts as texts, none of them empty."""
    texts = [str(name) for name in names]
    if "" in texts:
        location = f"entry {texts.index('')}"
        raise FileFormatError(
            f"{where}: {location} is empty; each row needs an id", path=path, location=location
        )
    return _refuse_printed_bytes(texts, path, "entry", 0)


def _decoded(array: np.ndarray, path: Path, where: str) -> np.ndarray:
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{where} is not UTF-8 ({first_line(error)}); save texts", path=path
        ) from None

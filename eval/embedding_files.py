"""Other people's embeddings: rows and ids from numpy, HDF5 and safetensors files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cusa.data.errors import CusaError

ROWS, IDS = "embeddings", "ids"  # names within HDF5 and safetensors files
LEGAL = ".npy, .h5 (FILE.h5:/group/name for what lies within) or .safetensors"
_LEGAL_IDS = "a .txt file with one per line, a .json list, or an .npy array of integers or strings"


def read_embeddings(path: Path, ids: Path | None) -> tuple[list[str], np.ndarray]:
    """Read embeddings and what each row is of.

    Args:
        path: ``.npy``; ``.safetensors`` with a tensor ``embeddings``; ``.h5`` with datasets ``embeddings`` and ``ids``,
            or ``FILE.h5:/group/name``: a group with these two, or a dataset with ``ids`` beside it.
        ids: Of the rows, in their order: ``.txt`` (one per line), ``.json`` (a list) or ``.npy`` (integers or
            strings); ``None``: those within the ``.h5``.

    Returns:
        The ids, and float32 ``[n, d]``, not normalised.

    Raises:
        CusaError: If a file is missing or damaged, rows are not a finite number each or all zeros, or ids are missing,
            given twice, or not as many as the rows; says which.
    """
    file, inside = _split(path)
    if not file.exists():
        raise CusaError(f"embeddings {file} do not exist; legal: {LEGAL}")
    suffix = file.suffix.lower()
    inner: np.ndarray | None = None
    if suffix in (".h5", ".hdf5"):
        rows, inner = _read_h5(file, inside)
    elif suffix == ".npy":
        rows = _read_npy(file)
    elif suffix == ".safetensors":
        rows = _read_safetensors(file)
    else:
        raise CusaError(f"embeddings {file} have an unknown suffix; legal: {LEGAL}")
    if ids is not None:
        names = _read_ids(ids)
    elif inner is not None:
        names = _as_ids(inner, f"{file}: {IDS}")
    else:
        raise CusaError(f"embeddings {path} have no ids; pass a file of them: {_LEGAL_IDS}")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise CusaError(
            f"{ids or file}: {len(twice):,} ids are given more than once, the first {twice[0]!r}; keep one row of each"
        )
    return names, _checked(rows, names, str(path), str(ids or file))


def align(ids: Sequence[str], rows: np.ndarray, wanted: Sequence[str], what: str) -> tuple[np.ndarray, int]:
    """Rows in the order of the ids that are wanted.

    Args:
        ids: Of the rows, all different.
        rows: ``[n, d]``.
        wanted: Ids, each of them among ``ids``.
        what: What they are ids of, for the error: ``"images"``, ``"captions"``.

    Returns:
        ``[len(wanted), d]``, and how many of ``ids`` are not wanted.

    Raises:
        CusaError: If ids are missing; says how many and which is the first.
    """
    position = {name: n for n, name in enumerate(ids)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise CusaError(
            f"the embeddings lack {len(missing):,} of {len(wanted):,} {what}, the first {missing[0]!r} (they have "
            f"{len(ids):,}, such as {ids[0] if len(ids) else None!r}); give every one a row under its id"
        )
    places = np.fromiter((position[name] for name in wanted), np.int64, len(wanted))
    return rows[places], len(ids) - len(set(wanted))


# --- rows


def _split(path: Path) -> tuple[Path, str | None]:
    """``FILE.h5:/group/name`` as file and name within."""
    for mark in (".h5:", ".hdf5:"):
        head, found, tail = str(path).partition(mark)
        if found:
            return Path(head + mark[:-1]), tail
    return path, None


def _read_npy(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if any(word in str(error).lower() for word in ("pickle", "object")):
            raise CusaError(
                f"{path} is no .npy array, or holds Python objects, which are never loaded; save an array of numbers "
                "or strings"
            ) from None
        raise _damaged(path, error) from None
    if not isinstance(found, np.ndarray):
        raise CusaError(f"{path} is an .npz archive; save its array as .npy")
    return found


def _read_safetensors(path: Path) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = file.keys()  # it is no mapping
            if ROWS not in names:
                held = ", ".join(sorted(names)[:5]) or "nothing"
                raise CusaError(f"{path} has no tensor {ROWS!r}, it holds {held}; name it so")
            tensor = file.get_tensor(ROWS)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
    # numpy knows no bfloat16
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _read_h5(path: Path, inside: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows, and the ids beside them if there are."""
    try:
        with h5py.File(path, "r") as file:
            place: Any = file[inside] if inside else file
            if isinstance(place, h5py.Group):
                place = place[ROWS]
            if not isinstance(place, h5py.Dataset):
                raise CusaError(f"{path}: {place.name} is no dataset; name one, as {path}:/group/name")
            ids = place.parent.get(IDS)
            if not isinstance(ids, h5py.Dataset):
                return place[()], None
            return place[()], ids.asstr("utf-8")[()] if h5py.check_string_dtype(ids.dtype) else ids[()]
    except KeyError:
        wanted = f"{(inside or '').rstrip('/')}/{ROWS}"
        with h5py.File(path, "r") as file:
            held = ", ".join(sorted(file)[:5]) or "nothing"
        raise CusaError(
            f"{path} has no dataset {inside or ROWS!r} or {wanted!r}, it holds {held}; name it, as {path}:/group/name"
        ) from None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CusaError:
    first = str(error).strip().split("\n")[0]
    return CusaError(f"{path} cannot be read ({first}); it is damaged, or not what its suffix says")


def _checked(rows: np.ndarray, names: list[str], path: str, ids: str) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype.kind not in "fiu":
        raise CusaError(f"{path} holds {rows.dtype}, not numbers; save float16, float32 or float64")
    if rows.ndim != 2 or not rows.shape[1]:
        raise CusaError(f"{path} holds an array of shape {rows.shape}; legal: one row per item, [n, d]")
    if len(rows) != len(names):
        raise CusaError(f"{path} holds {len(rows):,} rows, but {ids} {len(names):,} ids; there must be one each")
    if not len(rows):
        raise CusaError(f"{path} holds no rows; give every item one")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        found = np.array(rows, np.float32)
    for wrong, what in ((~np.isfinite(found).all(axis=1), "not finite"), (~found.any(axis=1), "all zeros")):
        if wrong.any():
            count, first = int(wrong.sum()), names[int(np.argmax(wrong))]
            raise CusaError(f"{path}: {count:,} rows are {what}, the first that of id {first!r}; such rows cannot rank")
    return found


# --- ids


def _read_ids(path: Path) -> list[str]:
    if not path.exists():
        raise CusaError(f"ids {path} do not exist; legal: {_LEGAL_IDS}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _as_ids(_read_npy(path), str(path))
    if suffix not in (".txt", ".json"):
        raise CusaError(f"ids {path} have an unknown suffix; legal: {_LEGAL_IDS}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".txt":
            return _lines(text, path)
        found = json.loads(text)
    except UnicodeDecodeError:
        raise CusaError(f"ids {path} are not UTF-8 text; convert the file") from None
    except OSError as error:
        raise _damaged(path, error) from None
    except json.JSONDecodeError as error:
        raise CusaError(f"ids {path} are not valid json ({error}); legal: a list of strings or integers") from None
    if not isinstance(found, list):
        raise CusaError(f"ids {path} are a json {type(found).__name__}; legal: a list of strings or integers")
    for n, one in enumerate(found):
        if not isinstance(one, (str, int)) or isinstance(one, bool) or one == "":
            raise CusaError(f"ids {path}: entry {n} is {one!r}; legal: strings or integers")
    return [str(one) for one in found]


def _lines(text: str, path: Path) -> list[str]:
    lines = text.split("\n")  # not splitlines: it takes other characters for ends of lines
    if lines[-1] == "":
        lines.pop()
    names = [line.strip() for line in lines]
    if "" in names:
        raise CusaError(f"ids {path}, line {names.index('') + 1}: empty; write the id of one row per line")
    return names


def _as_ids(array: np.ndarray, where: str) -> list[str]:
    array = np.asarray(array)
    if array.ndim != 1:
        raise CusaError(f"{where} is an array of shape {array.shape}; legal: one id per row, [n]")
    if array.dtype.kind in "iuU":
        found = [str(one) for one in array.tolist()]
    elif array.dtype.kind == "O" and all(isinstance(one, str) for one in array):  # strings as h5py reads them
        found = list(array)
    else:
        raise CusaError(f"{where} holds {array.dtype}; legal: integers or strings")
    if "" in found:
        raise CusaError(f"{where}: entry {found.index('')} is empty; each row needs an id")
    return found

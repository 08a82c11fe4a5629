"""Rows and ids in other programs' HDF5 files, whose stated sizes are checked against the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from cusa.data.errors import FileFormatError
from cusa.data.foreign.damaged_files import reading
from cusa.data.foreign.guarded_process import read_in_child
from cusa.data.foreign.npy import MAX_EXPANSION

_MAX_SHOWN = 5  # names in a message
# Texts read at a time; each may be as long as the file.
_TEXT_BLOCK = 64


def read_h5_rows(
    path: Path,
    inner_path: str,
    rows_name: str,
    ids_name: str,
) -> tuple[np.ndarray, list[Any] | None]:
    """Read a dataset of numbers, and the ids beside it.

    A child process reads them, since damaged files crash the library.

    Args:
        path: The file.
        inner_path: Name of the dataset, or of its group, within the file; empty for the root.
        rows_name: Name of the dataset, if ``inner_path`` is a group.
        ids_name: Name of the dataset of ids, in the same group.

    Returns:
        The dataset, unchanged, of any shape; and the ids, integers or texts, or ``None`` if there
        are none.

    Raises:
        FileFormatError: If the file is damaged, has no such dataset, holds anything but numbers and
            ids, or states a size that it cannot hold.
    """
    ids, rows = read_in_child(
        read_here,
        "HDF5",
        path,
        inner_path,
        rows_name,
        ids_name,
    )
    assert rows is not None, "the reader returns rows or raises"
    return rows, ids


def read_here(
    path: str,
    inner_path: str,
    rows_name: str,
    ids_name: str,
) -> tuple[list[Any] | None, np.ndarray]:
    """Read ids and rows as :func:`read_h5_rows` does, in this process."""
    file_path = Path(path)
    with reading(file_path, "HDF5"), h5py.File(path, "r") as file:
        dataset = _find_dataset(
            file,
            file_path,
            inner_path,
            rows_name,
        )
        ids: list[Any] | None = None
        ids_dataset = dataset.parent.get(ids_name)
        if isinstance(ids_dataset, h5py.Dataset):
            ids = _read_ids(ids_dataset, file_path)
        _check_size(dataset, file_path)
        return ids, dataset[()]


def _find_dataset(
    file: h5py.File,
    path: Path,
    inner_path: str,
    rows_name: str,
) -> h5py.Dataset:
    """Return the dataset with that name, or the rows of the group with that name."""
    dataset: Any = file
    if inner_path:
        dataset = file.get(inner_path)
    if isinstance(dataset, h5py.Group):
        inner_path = f"{inner_path.rstrip('/')}/{rows_name}"
        dataset = dataset.get(rows_name)
    if not isinstance(dataset, h5py.Dataset):
        names = ", ".join(sorted(file)[:_MAX_SHOWN]) or "nothing"
        raise FileFormatError(
            f"{path} has no dataset {inner_path!r}; it holds {names}; name one, as in "
            f"{path}:/group/name",
            path=path,
            location=inner_path,
        )
    if dataset.dtype.kind not in "fiu" or dataset.dtype.subdtype is not None:
        problem = f"holds {dataset.dtype}, not numbers; save float16, float32 or float64"
        _refuse(path, dataset, problem)
    return dataset


def _refuse(
    path: Path,
    dataset: h5py.Dataset,
    problem: str,
) -> NoReturn:
    message = f"{path}: {dataset.name} {problem}"
    raise FileFormatError(message, path=path, location=str(dataset.name))


def _check_size(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset that the file cannot hold, as HDF5 reads missing data as zeros."""
    problem = _size_problem(dataset, path.stat().st_size)
    if problem is not None:
        _refuse(path, dataset, f"{problem}; write all of it into the file")


def _size_problem(dataset: h5py.Dataset, file_size: int) -> str | None:
    """Describe why a dataset cannot be complete in its file; ``None`` if it can."""
    if dataset.is_virtual or dataset.external:
        return "lies in other files"
    if dataset.shape is None:
        return "is empty"
    if dataset.chunks:
        lengths = zip(dataset.shape, dataset.chunks, strict=True)
        # Rounded up, in exact integer arithmetic.
        n_chunks = math.prod(-(-length // chunk_length) for length, chunk_length in lengths)
        if dataset.id.get_num_chunks() != n_chunks:
            return "lacks some of its chunks"

    stored = min(dataset.id.get_storage_size(), file_size)
    promised = math.prod(dataset.shape) * dataset.id.get_type().get_size()
    possible = stored
    if dataset.id.get_create_plist().get_nfilters() > 0:
        possible = stored * MAX_EXPANSION
    if promised > possible:
        return f"should have {promised:,} bytes and has {stored:,}"
    return None


def _read_ids(dataset: h5py.Dataset, path: Path) -> list[Any]:
    """Read ids, integers or texts."""
    string = h5py.check_string_dtype(dataset.dtype)
    is_legal = string is not None or dataset.dtype.kind in "iu"
    if dataset.ndim != 1 or not is_legal:
        problem = f"is {dataset.dtype} of shape {dataset.shape}; legal: one integer or text per row"
        _refuse(path, dataset, problem)
    _check_size(dataset, path)
    if string is None:
        numbers: list[Any] = dataset[()].tolist()
        return numbers

    texts: list[Any] = []
    n_characters = 0
    for start in range(0, len(dataset), _TEXT_BLOCK):
        block = dataset.asstr("utf-8")[start : start + _TEXT_BLOCK]
        texts.extend(block)
        n_characters += sum(map(len, block))
        # Several entries of variable length may point to the same bytes of the file.
        if string.length is None and n_characters > path.stat().st_size:
            _refuse(path, dataset, "holds more text than the file; write each id by itself")
    return texts

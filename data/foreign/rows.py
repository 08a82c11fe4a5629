"""Files of embedding rows, with an id for each row; and of scores.

``cusa-store import`` and ``cusa-eval --image-embeddings`` share the reader, which reads everything
that the writer writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import EmbeddingsError, FileFormatError
from cusa.data.files import atomic_file
from cusa.data.foreign.damaged_files import reading
from cusa.data.foreign.hdf5 import read_h5_rows
from cusa.data.foreign.ids import LEGAL_IDS, check_ids, ids_as_texts, read_ids
from cusa.data.foreign.npy import open_npy

# Names within HDF5 and safetensors files.
ROWS = "embeddings"
IDS = "ids"
SCORES = "scores"
# Name of the rows in safetensors files of early versions of cusa-store export.
_EARLIER_ROWS = "rows"
LEGAL = ".npy, .safetensors, or .h5 (FILE.h5:/group/name for what lies within)"
# Ids that are written at a time.
_ID_BLOCK = 65_536
_MAX_SHOWN = 5  # names in a message
_NUMPY_FLOATS = ("torch.float16", "torch.float32", "torch.float64")


@dataclass(frozen=True)
class ForeignRows:
    """Embedding rows that another program made.

    Attributes:
        ids: The item of each row, all different: image ids, caption ids, paths, or texts.
        rows: float or int ``[n, d]``, as in the file: not normalised, and not checked for NaN.
        source: Where the rows come from, for messages.
    """

    ids: Sequence[str]
    rows: np.ndarray
    source: str


def read_rows(file_path: Path, given_ids: Path | None = None) -> ForeignRows:
    """Read embedding rows and the id of each.

    Args:
        file_path: ``.npy``; ``.safetensors`` with a tensor ``embeddings``; ``.h5`` with datasets
            ``embeddings`` and ``ids``, or ``FILE.h5:/group/name``: a group with these two, or a
            dataset with ``ids`` beside it.
        given_ids: File of the rows' ids, in row order: ``.txt`` (one per line), ``.json`` (a list)
            or ``.npy`` (integers or strings). ``None``: the ids within the ``.h5``, or else those
            in ``NAME.ids.json`` beside ``NAME.npy``, as ``cusa-store export`` writes it.

    Raises:
        FileFormatError: If a file is missing, damaged, or holds anything else.
        EmbeddingsError: If ids are missing, repeated, or not one for each row.
    """
    file, rows, inner_ids = _read_array(file_path, ROWS)
    if rows.ndim != 2 or not rows.shape[1]:
        message = f"{file_path} holds an array of shape {rows.shape}; legal: a row per item, [n, d]"
        raise FileFormatError(message, path=file)

    # Given ids take precedence over those within the file, and these over a file beside it.
    ids_path = given_ids
    if ids_path is None and inner_ids is None:
        ids_path = _existing_ids_path(file)
    if ids_path is not None:
        row_ids = read_ids(ids_path)
    elif inner_ids is not None:
        ids_path = file
        row_ids = ids_as_texts(inner_ids, file)
    else:
        message = f"embeddings {file_path} have no ids; pass a file of them: {LEGAL_IDS}"
        raise EmbeddingsError(message, path=file)
    check_ids(row_ids, len(rows), file_path, ids_path)
    return ForeignRows(row_ids, rows, str(file_path))


def read_scores(file_path: Path) -> np.ndarray:
    """Read a matrix of scores of images with captions.

    Args:
        file_path: ``.npy``, which is mapped into memory; ``.safetensors`` with a tensor ``scores``;
            ``.h5`` with a dataset ``scores``, or ``FILE.h5:/group/name``.

    Returns:
        float or int ``[images, captions]``, as in the file; not checked for NaN.

    Raises:
        FileFormatError: If the file is missing, damaged, or holds anything else.
    """
    file, scores, _ = _read_array(file_path, SCORES)
    if scores.ndim != 2 or not scores.size:
        message = f"{file_path} holds an array of shape {scores.shape}; legal: [images, captions]"
        raise FileFormatError(message, path=file)
    return scores


def _read_array(file_path: Path, array_name: str) -> tuple[Path, np.ndarray, list[Any] | None]:
    """Return the file, the array of numbers in it, and the ids beside that, if any."""
    file, inner_path = split_inner_path(file_path)
    if not file.exists():
        raise FileFormatError(f"{array_name} {file} do not exist; legal: {LEGAL}", path=file)
    array, inner_ids = _read_file(file, inner_path, array_name)
    if array.dtype.kind not in "fiu":
        message = f"{file_path} holds {array.dtype}, not numbers; save float16, float32 or float64"
        raise FileFormatError(message, path=file)
    return file, array, inner_ids


def write_rows(
    file_path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    dtype: np.dtype,
    item_ids: Sequence[str],
    settings: str,
) -> Path:
    """Write embedding rows to a file, and their ids to another beside it.

    Args:
        file_path: ``.npy`` (written block by block) or ``.safetensors`` (tensor ``embeddings``; all
            rows are in memory at once).
        blocks: The rows in order, in blocks ``[n_block, d]``.
        shape: Shape of all rows, ``[n, d]``.
        dtype: Dtype of the rows.
        item_ids: Ids of the rows, in the same order.
        settings: Settings of their teacher, as JSON; kept in the metadata of a ``.safetensors``.

    Returns:
        Path of the file of ids, ``NAME.ids.json``: a JSON list.

    Raises:
        FileFormatError: If the suffix is another.
        EmbeddingsError: If that file of ids exists and belongs to a ``NAME`` with the other suffix
            and other ids.
    """
    if file_path.suffix not in (".npy", ".safetensors"):
        raise FileFormatError(
            f"{file_path}: rows are exported to .npy or .safetensors",
            path=file_path,
        )
    _refuse_shared_ids(file_path, item_ids)
    if file_path.suffix == ".npy":
        _write_npy(file_path, blocks, shape, dtype)
    else:
        _write_safetensors(file_path, blocks, settings)
    ids_path = _ids_path(file_path)
    _write_ids(ids_path, item_ids)
    return ids_path


def _write_npy(
    file_path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    dtype: np.dtype,
) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with atomic_file(file_path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block.tobytes())


def _write_safetensors(
    file_path: Path,
    blocks: Iterable[np.ndarray],
    settings: str,
) -> None:
    from safetensors.numpy import save

    with atomic_file(file_path) as temporary:
        content = save({ROWS: np.concatenate(list(blocks))}, {"settings": settings})
        temporary.write_bytes(content)


def _write_ids(file_path: Path, item_ids: Sequence[str]) -> None:
    """Write ids as a JSON list, in blocks, so that they are never in memory all at once."""
    with atomic_file(file_path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for start in range(0, len(item_ids), _ID_BLOCK):
            if start > 0:
                file.write(",\n")
            block = list(item_ids[start : start + _ID_BLOCK])
            items = json.dumps(block, ensure_ascii=False)[1:-1]  # without brackets
            file.write(items)
        file.write("]\n")


def split_inner_path(file_path: Path) -> tuple[Path, str]:
    """Split ``FILE.h5:/group/name`` into the file and the name within it."""
    for suffix in (".h5", ".hdf5"):
        file, separator, inner_path = str(file_path).partition(f"{suffix}:")
        if separator:
            return Path(file + suffix), inner_path
    return file_path, ""


def _ids_path(file_path: Path) -> Path:
    """Return the path of the file of ids beside a file of rows."""
    return file_path.with_suffix(".ids.json")


def _existing_ids_path(file_path: Path) -> Path | None:
    ids_path = _ids_path(file_path)
    return ids_path if ids_path.is_file() else None


def _refuse_shared_ids(file_path: Path, item_ids: Sequence[str]) -> None:
    """Refuse other ids for ``x.npy`` than for ``x.safetensors``: both share ``x.ids.json``."""
    twin = file_path.with_suffix(".safetensors" if file_path.suffix == ".npy" else ".npy")
    ids_path = _existing_ids_path(file_path)
    if ids_path is None or not twin.exists():
        return
    if read_ids(ids_path) != list(item_ids):
        raise EmbeddingsError(
            f"{ids_path} has the ids of {twin}, which differ; export to another name than "
            f"{file_path}",
            path=ids_path,
        )


def _read_file(
    file_path: Path, inner_path: str, array_name: str
) -> tuple[np.ndarray, list[Any] | None]:
    """Read an array, and the ids within the file, if any."""
    suffix = file_path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return read_h5_rows(file_path, inner_path, array_name, IDS)
    if suffix == ".npy":
        return open_npy(file_path), None
    if suffix == ".safetensors":
        return _read_safetensors(file_path, array_name), None
    raise FileFormatError(
        f"{array_name} {file_path} have an unknown suffix; legal: {LEGAL}",
        path=file_path,
    )


def _read_safetensors(file_path: Path, array_name: str) -> np.ndarray:
    from safetensors import safe_open

    with reading(file_path, "safetensors"), safe_open(file_path, "pt") as file:
        names = sorted(file.keys())
        tensor: Any = None
        accepted = [array_name]
        if array_name == ROWS:
            accepted = [_EARLIER_ROWS, ROWS]
        for name in accepted:
            if name in names:
                tensor = file.get_tensor(name)

    if tensor is None:
        contents = ", ".join(names[:_MAX_SHOWN]) or "nothing"
        raise FileFormatError(
            f"{file_path} has no tensor {array_name!r}; it holds {contents}; rename the tensor",
            path=file_path,
        )
    # numpy has neither bfloat16 nor torch's 8-bit floats.
    if tensor.is_floating_point() and str(tensor.dtype) not in _NUMPY_FLOATS:
        tensor = tensor.float()
    return tensor.numpy()

"""Feature files of the published CUSA code: a pickled dictionary in a .npy, read without trust."""

from __future__ import annotations

import io
import mmap
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import CusaError, FileFormatError, first_line
from cusa.data.foreign.npy import read_npy_header
from cusa.data.foreign.pickles import Effort, StandIn, read_pickle

_TYPE = re.compile(r"[biuf][1248]|U\d{1,4}")
_TORCH_MAGIC, _TORCH_VERSION = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "BFloat16Storage": "bfloat16",
}
_LEAST_VALUE_BYTES, _MOST_DIMENSIONS = 2, 32


def read_published_rows(path: Path) -> tuple[list[str], np.ndarray]:
    """Read a feature file of the published CUSA code: a dictionary from image to vector, pickled in a ``.npy``.

    Numpy arrays and torch tensors are admitted and nothing else; neither library unpickles any of
    it. Memory and time are in proportion to the file's size, whatever it says.

    Args:
        path: ``{split}_unicom.npy``; vectors are ``[dim]`` or ``[1, dim]``.

    Returns:
        Keys as texts, and float32 ``[n, dim]``.

    Raises:
        FileFormatError: If it holds anything else.
    """
    try:
        shape, _, dtype, offset = read_npy_header(path)
        if dtype.kind != "O" or shape != ():
            raise FileFormatError(
                f"{path} holds {dtype} {shape}, no pickled dictionary; import it with --ids",
                path=path,
            )
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            content.seek(offset)
            array = _read_pickle(content, len(content))
        items = array.data[0] if isinstance(array, _Array) else array
        if not isinstance(items, dict) or not items:
            raise FileFormatError(
                f"{path} holds no dictionary from image to vector; import other arrays with --ids",
                path=path,
            )
        return [str(key) for key in items], _stacked(list(items.values()), path.stat().st_size)
    except CusaError:
        raise
    except PermissionError:
        raise
    except Exception as error:  # what the file's values make numpy meet
        problem = first_line(error)
        raise FileFormatError(
            f"{path} cannot be read as a dictionary of vectors ({problem})", path=path
        ) from None


def _read_pickle(stream: Any, n_bytes: int) -> Any:
    effort = Effort(n_bytes)
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("torch.storage", "_load_from_bytes"): partial(_storage, effort=effort),
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("collections", "OrderedDict"): _no_hooks,
        ("_codecs", "encode"): partial(_latin_bytes, effort=effort),
    }
    return read_pickle(stream, effort, names)


def _stacked(values: list[object], n_bytes: int) -> np.ndarray:
    """float32 ``[n, dim]``; a file may name one vector many times, so its size is looked at."""
    vectors = [_vector(value) for value in values]
    lengths = {len(vector) for vector in vectors}
    if len(lengths) != 1 or 0 in lengths:
        raise pickle.UnpicklingError(
            f"vectors must have the same shape, they have {len(lengths)}, or none"
        )
    if len(vectors) * lengths.pop() * _LEAST_VALUE_BYTES > n_bytes:
        raise pickle.UnpicklingError("it names more numbers than it holds")
    return np.stack([vector.astype(np.float32) for vector in vectors])


def _vector(value: object) -> np.ndarray:
    """Float ``[dim]``."""
    if isinstance(value, _Array):
        value = value.values()
    if (
        not isinstance(value, np.ndarray)
        or value.dtype.kind != "f"
        or value.size not in value.shape[-1:]
    ):
        what = (
            f"{value.dtype} {value.shape}"
            if isinstance(value, np.ndarray)
            else type(value).__name__
        )
        raise pickle.UnpicklingError(f"{what} is no float [dim] or [1, dim]")
    return value.reshape(-1)


class _Dtype(StandIn):
    """In the place of a numpy dtype: its code, such as ``f2``, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def set_state(self, state: Any) -> None:
        """Take the byte order, which is all of it that plain numbers have."""
        self.order = state[1]

    def plain(self) -> np.dtype:
        """The dtype, if it is one of numbers or texts."""
        if not isinstance(self.code, str) or not _TYPE.fullmatch(self.code):
            raise pickle.UnpicklingError("an array holds neither numbers nor texts")
        if self.order not in ("=", "<", ">", "|"):
            raise pickle.UnpicklingError("an array has no byte order")
        return np.dtype(self.order + self.code)


class _Array(StandIn):
    """In the place of a numpy array."""

    def __init__(self, *_: object) -> None:
        self.data: Any = None

    def set_state(self, state: Any) -> None:
        """Take shape, dtype, order and content."""
        _, self.shape, self.dtype, self.is_fortran, self.data = state

    def values(self) -> np.ndarray:
        """The array; its content is the file's, and no copy."""
        values = np.frombuffer(self.data, self.dtype.plain())
        return values.reshape(self.shape, order="F" if self.is_fortran else "C")


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    """A number or text; a key may be one."""
    return np.frombuffer(content, dtype.plain())[0].item()


def _no_hooks() -> dict[str, Any]:
    """In the place of a tensor's backward hooks, of which a file has none."""
    return {}


def _latin_bytes(text: str, encoding: str, *, effort: Effort) -> bytes:
    """How old pickles write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("it writes bytes in another encoding than latin1")
    effort.spend(len(text))
    return text.encode("latin1")


@dataclass(frozen=True)
class _StorageId:
    """What a torch file says of a storage before its values come."""

    code: str
    length: int


def _storage(content: bytes, *, effort: Effort) -> np.ndarray:
    """The values of a torch storage, from a file of torch's older format within the pickle.

    The file: four pickles (magic number, version, sizes of C's types, the storage by its persistent
    id), a fifth of the storages' keys, and of each its length, int64, and its values.
    """
    stream = io.BytesIO(content)
    types: Mapping[tuple[str, str], Callable[..., Any]] = {
        ("torch", name): partial(str, code) for name, code in _STORAGES.items()
    }
    magic, version = (read_pickle(stream, effort, {}) for _ in range(2))
    if (magic, version) != (_TORCH_MAGIC, _TORCH_VERSION):
        raise pickle.UnpicklingError("a storage is not of torch's older format")
    read_pickle(stream, effort, {})
    storage = read_pickle(stream, effort, types, _storage_id)
    keys = read_pickle(stream, effort, {})
    if not isinstance(storage, _StorageId) or not isinstance(keys, list) or len(keys) != 1:
        raise pickle.UnpicklingError("a torch file holds something else than one storage")
    length = int.from_bytes(stream.read(8), "little")
    if length != storage.length:
        raise pickle.UnpicklingError(f"a storage has {length} values instead of {storage.length}")
    if storage.code == "bfloat16":
        effort.spend(length)  # its values are copied
    return _float_values(content, stream.tell(), storage)


def _storage_id(persistent: Any) -> _StorageId:
    kind, storage_type, _, _, length, *_ = persistent
    if kind != "storage" or not isinstance(length, int) or length < 0:
        raise pickle.UnpicklingError("a torch file refers to something else than a storage")
    return _StorageId(storage_type(), length)


def _float_values(content: bytes, offset: int, storage: _StorageId) -> np.ndarray:
    if storage.code != "bfloat16":
        return np.frombuffer(content, f"<{storage.code}", storage.length, offset)
    upper_halves = np.frombuffer(content, "<u2", storage.length, offset)
    return (upper_halves.astype("<u4") << 16).view("<f4")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> np.ndarray:
    """A view of a storage, none of whose values is in it twice."""
    if not isinstance(storage, np.ndarray) or not all(map(_are_counts, (size, stride, (offset,)))):
        raise pickle.UnpicklingError("a tensor has no storage, or no size")
    if len(size) != len(stride) or 0 in stride:
        raise pickle.UnpicklingError(f"a tensor has size {size} and stride {stride}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if last >= len(storage) and 0 not in size:
        raise pickle.UnpicklingError(
            f"a tensor of size {size} and stride {stride} lies outside of its storage"
        )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _are_counts(values: Any) -> bool:
    """Whether this is a tuple of a few whole numbers, none negative, as a tensor's size is."""
    is_short = isinstance(values, tuple) and len(values) <= _MOST_DIMENSIONS
    return is_short and all(isinstance(value, int) and value >= 0 for value in values)

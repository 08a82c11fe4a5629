"""Feature files of the published CUSA code: a pickled dictionary in a .npy, read as untrusted."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import FileFormatError
from cusa.data.foreign.damaged_files import reading
from cusa.data.foreign.guarded_process import Read, read_in_child
from cusa.data.foreign.npy import read_npy_header
from cusa.data.foreign.pickles import PlainUnpickler, StandIn

_FORM = "a dictionary of vectors"
_TYPE = re.compile(r"[biuf][1248]|U\d{1,4}")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_VERSION = 1001
_STORAGES = {
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "BFloat16Storage": "bfloat16",
}
_MAX_DIMENSIONS = 32


def read_published_rows(file_path: Path) -> tuple[list[str], np.ndarray]:
    """Read a feature file of the published CUSA code.

    It is a dictionary from image to vector, pickled in a ``.npy``. The vectors may be numpy arrays
    or torch tensors and nothing else; neither library unpickles any of it. A child process reads
    the file, with limits on memory and time that depend on the file's size.

    Args:
        file_path: ``{split}_unicom.npy``; vectors are float ``[dim]`` or ``[1, dim]``.

    Returns:
        The keys as texts, and the vectors as float32 ``[n, dim]``, not normalised.

    Raises:
        FileFormatError: If it holds anything else.
    """
    with reading(file_path, _FORM):
        keys, rows = read_in_child(read_here, _FORM, file_path)
    assert rows is not None, "the reader returns rows or raises"
    return keys, rows


def read_here(path: str) -> Read:
    """Read keys and rows as :func:`read_published_rows` does, in this process."""
    file_path = Path(path)
    with reading(file_path, _FORM):
        vectors = _read_dictionary(file_path)
        rows = [_vector(value).astype(np.float32) for value in vectors.values()]
        lengths = set(map(len, rows))
        if len(lengths) != 1 or 0 in lengths:
            problem = f"vectors must have one length above zero, not {sorted(lengths)[:3]}"
            raise pickle.UnpicklingError(problem)
        return list(map(str, vectors)), np.stack(rows)


def _read_dictionary(file_path: Path) -> dict[Any, object]:
    """Read the pickled dictionary of a ``.npy``."""
    shape, _, dtype, offset = read_npy_header(file_path)
    if dtype.kind != "O" or shape != ():
        raise FileFormatError(
            f"{file_path} holds {dtype} {shape}, not a pickled dictionary; import it with --ids",
            path=file_path,
        )

    with file_path.open("rb") as file:
        file.seek(offset)
        items = PlainUnpickler(file, _NAMES).load()
    # numpy saves the dictionary as an array with that single element.
    if isinstance(items, _Array):
        items = items.data[0]
    if not isinstance(items, dict) or not items:
        raise FileFormatError(
            f"{file_path} holds no dictionary from image to vector; import other arrays with --ids",
            path=file_path,
        )
    return items


def _vector(value: object) -> np.ndarray:
    """Return a value of the dictionary as float ``[dim]``."""
    if isinstance(value, _Array):
        value = value.values()
    if not isinstance(value, np.ndarray):
        raise pickle.UnpicklingError(f"{type(value).__name__} is not float [dim] or [1, dim]")
    # The size equals the last dimension if all others are 1.
    if value.dtype.kind != "f" or value.size not in value.shape[-1:]:
        raise pickle.UnpicklingError(f"{value.dtype} {value.shape} is not float [dim] or [1, dim]")
    return value.reshape(-1)


class _Dtype(StandIn):
    """A stand-in for a numpy dtype: its code, such as ``f2``, and its byte order."""

    def __init__(
        self,
        code: str,
        *_: object,
    ) -> None:
        self.code = code
        self.order = "="

    def set_state(self, state: Any) -> None:
        """Take the byte order, the only part of the state that plain numbers need."""
        self.order = state[1]

    def plain(self) -> np.dtype:
        """Return the dtype, which must be one of numbers or texts."""
        if not isinstance(self.code, str) or not _TYPE.fullmatch(self.code):
            raise pickle.UnpicklingError("an array holds neither numbers nor texts")
        if self.order not in ("=", "<", ">", "|"):
            raise pickle.UnpicklingError("an array has an unknown byte order")
        return np.dtype(self.order + self.code)


class _Array(StandIn):
    """A stand-in for a numpy array."""

    def __init__(self, *_: object) -> None:
        self.data: Any = None

    def set_state(self, state: Any) -> None:
        """Take shape, dtype, order and content."""
        _, self.shape, self.dtype, self.is_fortran, self.data = state

    def values(self) -> np.ndarray:
        """Return the array, as a view of the bytes in the pickle."""
        values = np.frombuffer(self.data, self.dtype.plain())
        return values.reshape(self.shape, order="F" if self.is_fortran else "C")


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    """Return a numpy scalar, which a key may be, as a Python number or text."""
    return np.frombuffer(content, dtype.plain())[0].item()


def _no_hooks() -> dict[str, Any]:
    """Return a tensor's backward hooks, which are always empty in a file."""
    return {}


def _latin_bytes(text: str, encoding: str) -> bytes:
    """Restore bytes, which pickles of old protocols write as a text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it writes bytes as {encoding!r}, not as latin1")
    return text.encode("latin1")


@dataclass(frozen=True)
class _StorageId:
    """The dtype code and length of a storage, which a torch file has before the values."""

    code: str
    length: int


def _storage(content: bytes) -> np.ndarray:
    """Read the values of a torch storage, which the pickle holds as a file of torch's old format.

    Such a file has five pickles (magic number, version, sizes of C types, the storage by its
    persistent id, the keys of all storages) and then, for each storage, its length as int64 and its
    values.
    """
    stream = io.BytesIO(content)
    types = {("torch", name): partial(str, code) for name, code in _STORAGES.items()}
    magic = PlainUnpickler(stream, {}).load()
    version = PlainUnpickler(stream, {}).load()
    if (magic, version) != (_TORCH_MAGIC, _TORCH_VERSION):
        raise pickle.UnpicklingError("a storage is not in torch's old format")
    PlainUnpickler(stream, {}).load()  # the sizes of C types
    storage = PlainUnpickler(stream, types, _storage_id).load()
    keys = PlainUnpickler(stream, {}).load()
    if not isinstance(storage, _StorageId) or not isinstance(keys, list) or len(keys) != 1:
        raise pickle.UnpicklingError("a torch file does not hold exactly one storage")
    length = int.from_bytes(stream.read(8), "little")
    if length != storage.length:
        raise pickle.UnpicklingError(f"a storage has {length} values instead of {storage.length}")
    return _float_values(content, stream.tell(), storage)


def _storage_id(persistent: Any) -> _StorageId:
    """Return the dtype code and length of the storage with a persistent id."""
    kind, storage_type, _, _, length, *_ = persistent
    if kind != "storage" or not isinstance(length, int) or length < 0:
        raise pickle.UnpicklingError("a torch file refers to something that is not a storage")
    return _StorageId(storage_type(), length)


def _float_values(
    content: bytes,
    offset: int,
    storage: _StorageId,
) -> np.ndarray:
    """Return the values of a storage; bfloat16, which numpy lacks, becomes float32."""
    if storage.code != "bfloat16":
        return np.frombuffer(content, f"<{storage.code}", storage.length, offset)
    # A bfloat16 is the upper half of a float32.
    upper_halves = np.frombuffer(content, "<u2", storage.length, offset)
    return (upper_halves.astype("<u4") << 16).view("<f4")


def _tensor(
    storage: Any,
    offset: int,
    size: Any,
    stride: Any,
    *_: object,
) -> np.ndarray:
    """Return a tensor as a view of its storage, within its bounds and without stride 0."""
    has_size = _are_counts(size) and _are_counts(stride) and _are_counts((offset,))
    if not isinstance(storage, np.ndarray) or not has_size:
        raise pickle.UnpicklingError("a tensor has no storage, or no size")
    if len(size) != len(stride) or 0 in stride:
        raise pickle.UnpicklingError(f"a tensor has size {size} and stride {stride}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if last >= len(storage) and 0 not in size:
        raise pickle.UnpicklingError(
            f"a tensor of size {size} and stride {stride} lies outside of its storage",
        )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _are_counts(values: Any) -> bool:
    """Return whether this is a short tuple of ints from 0, as a tensor's size is."""
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        return False
    return all(isinstance(value, int) and value >= 0 for value in values)


# The legal names: those that arrays and tensors are built from, and nothing else.
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): _no_hooks,
    ("_codecs", "encode"): _latin_bytes,
}

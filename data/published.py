"""Feature files of the published CUSA code: a pickled dictionary in a .npy, unpickled without trust."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import CusaError


def read_published_rows(path: Path) -> tuple[list[str], np.ndarray]:
    """Read a feature file of the published CUSA code: a dictionary from image to vector, pickled in a ``.npy``.

    Unpickling admits numpy arrays and torch tensors and nothing else.

    Args:
        path: ``{split}_unicom.npy``; vectors are ``[dim]`` or ``[1, dim]``.

    Returns:
        Keys as texts, and float32 ``[n, dim]``.

    Raises:
        CusaError: If it holds anything else.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if dtype.kind != "O" or shape != ():
                raise CusaError(f"{path} holds {dtype} {shape}, no pickled dictionary; import it with --ids")
            content = _ArraysOnly(file).load()
        found = content.data[0] if isinstance(content, _Array) else content
        if not isinstance(found, dict) or not found:
            raise CusaError(f"{path} holds no dictionary from image to vector; import other arrays with --ids")
        return [str(key) for key in found], np.stack([_vector(value) for value in found.values()])
    except FileNotFoundError:
        raise CusaError(f"{path} does not exist") from None
    except CusaError:
        raise
    except Exception as error:  # a foreign pickle may fail in any way
        raise CusaError(f"{path} cannot be read as a dictionary of vectors ({error})") from None


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and tensors into stand-ins that only keep what the file says of them.

    numpy's own dtype and array would believe any flags and sizes in the file, and use memory that is not theirs;
    torch's own function for a storage would unpickle it without limits.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in _STANDS_IN:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a numpy array nor a torch tensor")
        return _STANDS_IN[module, name]


class _Dtype:
    """In the place of a numpy dtype: its code, such as ``f2``, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """In the place of a numpy array."""

    def __init__(self, *_: object) -> None:
        self.data: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def values(self) -> np.ndarray:
        values = np.frombuffer(self.data, self.dtype.order + self.dtype.code)  # refuses objects
        return values.reshape(self.shape, order="F" if self.fortran else "C")


def _vector(value: object) -> np.ndarray:
    """float32 ``[dim]``."""
    if isinstance(value, _Array):
        value = value.values()
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.size not in value.shape[-1:]:
        what = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise pickle.UnpicklingError(f"{what} is no float [dim] or [1, dim]")
    return value.astype(np.float32).reshape(-1)


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    """A number or text; a key may be one."""
    return np.frombuffer(content, dtype.order + dtype.code)[0].item()


def _storage(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> np.ndarray:
    import torch

    whole = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return whole.as_strided(size, stride, offset).float().numpy()  # refuses what lies outside the storage


def _bytes(text: str, encoding: str) -> bytes:
    """How old pickles write bytes."""
    return text.encode(encoding)


_STANDS_IN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _bytes,
}

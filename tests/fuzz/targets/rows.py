"""Embedding rows in files that others wrote, and files of ids, against numpy's and json's own
reading.
"""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.numpy

from cusa.data.foreign.ids import read_ids
from cusa.data.foreign.npy import read_npz
from cusa.data.foreign.published import read_published_rows
from cusa.data.foreign.rows import read_rows
from tests.fuzz.harness import Target
from tests.fuzz.mutations import (
    BYTE_MUTATORS,
    Mutator,
    mutate_hdf5,
    mutate_json,
    mutate_npy,
    mutate_pickle,
    mutate_safetensors,
    mutate_zip,
)

_ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype("<f4")
_IDS = ["one", "2", "drei é", "4.jpg"]

Value = tuple[list[str], str, tuple[int, ...], bytes]


def _value(ids: Any, rows: np.ndarray) -> Value:
    return list(ids), rows.dtype.name, rows.shape, np.ascontiguousarray(rows).tobytes()


def _read(path: Path) -> Value:
    foreign = read_rows(path)
    return _value(foreign.ids, foreign.rows)


def _agrees_with(independent: Callable[[Path], Value]) -> Callable[[Value, Value, Path], bool]:
    def agrees(_: Value, value: Value, path: Path) -> bool:
        return value == independent(path)

    return agrees


def _numpy_rows(path: Path) -> Value:
    return _value(
        json.loads(path.with_suffix(".ids.json").read_text()), np.load(path, allow_pickle=False)
    )


def _numpy_archive(path: Path) -> list[Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return _arrays({name: arrays[name] for name in arrays.files})


def _arrays(arrays: dict[str, np.ndarray]) -> list[Any]:
    return [
        (name, array.dtype.str, array.shape, array.tobytes())
        for name, array in sorted(arrays.items())
    ]


def _safetensors_rows(path: Path) -> Value:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    fields = json.loads(content[8 : 8 + size])
    field = fields["embeddings"] if "embeddings" in fields else fields["rows"]
    start, stop = field["data_offsets"]
    values = content[8 + size :][start:stop]
    if field["dtype"] == "BF16":
        rows = (np.frombuffer(values, "<u2").astype("<u4") << 16).view("<f4")
    else:
        kind = {"F": "f", "I": "i", "U": "u"}[field["dtype"][0]]
        rows = np.frombuffer(values, f"<{kind}{int(field['dtype'][1:]) // 8}")
    return _value(
        json.loads(path.with_suffix(".ids.json").read_text()), rows.reshape(field["shape"])
    )


def _h5py_rows(path: Path) -> Value:
    with h5py.File(path) as file:
        ids = file["ids"]
        names = [
            str(name)
            for name in (ids.asstr()[:] if h5py.check_string_dtype(ids.dtype) else ids[:].tolist())
        ]
        return _value(names, file["embeddings"][:])


def _npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def _write_rows(file_name: str, content: bytes) -> Callable[[Path], Path]:
    """Rows with their ids beside them."""

    def make(folder: Path) -> Path:
        path = folder / file_name
        path.write_bytes(content)
        path.with_suffix(".ids.json").write_text(json.dumps(_IDS))
        return path

    return make


def _make_npz(folder: Path) -> Path:
    path = folder / "arrays.npz"
    np.savez_compressed(path, rows=_ROWS, ids=np.array(_IDS), numbers=np.arange(5))
    return path


def _make_h5(folder: Path) -> Path:
    path = folder / "rows.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", data=_ROWS)
        file.create_dataset("ids", data=_IDS, dtype=h5py.string_dtype())
    return path


# --- feature files of the published code


class _OnlyArrays(pickle.Unpickler):
    """Python's own unpickler; what the mutated pickle may name is what a pickled array needs."""

    def find_class(self, module: str, name: str) -> Any:
        assert module.split(".")[0] == "numpy", f"{module}.{name}"
        assert name in ("ndarray", "dtype", "_reconstruct", "scalar"), name
        return super().find_class(module, name)


def _unpickled(path: Path) -> tuple[list[str], bytes]:
    content = path.read_bytes()
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    array = _OnlyArrays(stream).load()
    items = array.item() if isinstance(array, np.ndarray) else array
    rows = np.stack([np.asarray(row, np.float32).reshape(-1) for row in items.values()])
    return [str(key) for key in items], rows.tobytes()


def _read_published(path: Path) -> tuple[list[str], bytes]:
    keys, rows = read_published_rows(path)
    return keys, rows.tobytes()


def _published_agrees(
    valid: tuple[list[str], bytes], value: tuple[list[str], bytes], path: Path
) -> bool:
    """Damage that ours passes over, such as fields of a dtype, leaves the rows as they were."""
    return value[1] == valid[1] or value == _unpickled(path)


def _mutate_opcodes(content: bytes, rng: random.Random) -> bytes:
    """Mutate the pickle behind the .npy header."""
    start = content.find(b"\n") + 1
    return content[:start] + mutate_pickle(content[start:], rng)


# --- ids


def _json_ids(path: Path) -> list[str]:
    names = json.loads(path.read_text(encoding="utf-8-sig"))
    assert isinstance(names, list)
    assert {type(name) for name in names} <= {str, int}
    return [str(name) for name in names]


def _text_ids(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def _numpy_ids(path: Path) -> list[str]:
    array = np.load(path, allow_pickle=False)
    return [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]


def _ids_target(
    suffix: str, content: bytes, mutators: tuple[Mutator, ...], independent: Callable[[Path], Any]
) -> Target:
    def make(folder: Path) -> Path:
        path = folder / f"ids{suffix}"
        path.write_bytes(content)
        return path

    return Target(
        f"ids/{suffix[1:]}", make, mutators, read_ids, _agrees_with(independent), weight=3
    )


def _rows_target(
    name: str,
    make: Callable[[Path], Path],
    mutator: Mutator,
    independent: Callable[[Path], Value],
    weight: float = 3,
) -> Target:
    mutators = (mutator,) * 8 + BYTE_MUTATORS
    return Target(f"rows/{name}", make, mutators, _read, _agrees_with(independent), weight)


_PUBLISHED = {f"{number}.jpg": row for number, row in enumerate(_ROWS)}
_SAFETENSORS = safetensors.numpy.save(
    {"embeddings": _ROWS, "other": np.arange(3)}, {"settings": "{}"}
)

TARGETS = (
    _rows_target("npy", _write_rows("rows.npy", _npy(_ROWS)), mutate_npy, _numpy_rows),
    _rows_target(
        "safetensors",
        _write_rows("rows.safetensors", _SAFETENSORS),
        mutate_safetensors,
        _safetensors_rows,
    ),
    _rows_target("h5", _make_h5, mutate_hdf5, _h5py_rows, weight=0.5),
    Target(
        "rows/npz",
        _make_npz,
        (mutate_zip(mutate_npy),) * 8 + BYTE_MUTATORS,
        lambda path: _arrays(read_npz(path)),
        lambda valid, value, path: value == valid or value == _numpy_archive(path),
        weight=2,
    ),
    Target(
        "rows/published",
        _write_rows("train_unicom.npy", _npy(_PUBLISHED, allow_pickle=True)),
        (_mutate_opcodes, *BYTE_MUTATORS),
        _read_published,
        _published_agrees,
        weight=3,
    ),
    _ids_target(
        ".json",
        json.dumps(["a", 2, "drei é"]).encode(),
        (mutate_json,) * 8 + BYTE_MUTATORS,
        _json_ids,
    ),
    _ids_target(".txt", "a\n2\n drei é \n".encode(), BYTE_MUTATORS, _text_ids),
    _ids_target(
        ".npy", _npy(np.array(["a", "2", "drei é"])), (mutate_npy,) * 8 + BYTE_MUTATORS, _numpy_ids
    ),
)

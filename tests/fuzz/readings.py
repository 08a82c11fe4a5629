"""Simple readings of structured files, independent of the library's own, that targets
compare with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "?",
}
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "U8": "uint8"}


def json_of(path: Path) -> Any:
    """What a JSON file holds; the last of equal keys counts."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def is_same(read: Any, written: Any) -> bool:
    """Whether a value was read as it is written; a whole number may be read as a float, and no bool
    is a number.
    """
    if isinstance(read, Mapping):
        return (
            isinstance(written, Mapping) and read.keys() == written.keys() and _agree(read, written)
        )
    if isinstance(read, (list, tuple)):
        return (
            isinstance(written, (list, tuple))
            and len(read) == len(written)
            and all(is_same(a, b) for a, b in zip(read, written, strict=True))
        )
    if isinstance(read, bool) or isinstance(written, bool):
        return read is written
    if isinstance(read, (int, float)):
        return isinstance(written, (int, float)) and read == written
    return type(read) is type(written) and read == written


def _agree(read: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    return all(is_same(value, written[name]) for name, value in read.items())


def is_taken_from(read: Any, written: Any, defaults: Mapping[str, Any]) -> bool:
    """Whether all that was read is written so, or absent there and at its default.

    Args:
        read: Nested mappings, down to values.
        written: The same as written; it may hold more.
        defaults: By name, what an absent entry is read as.
    """
    if not isinstance(read, Mapping):
        return is_same(read, written)
    if not isinstance(written, Mapping):
        return False
    for name, value in read.items():
        if name not in written:
            if name not in defaults or not is_same(value, defaults[name]):
                return False
        elif not is_taken_from(value, written[name], defaults):
            return False
    return True


def is_overlaid(read: Any, written: Any, base: Any) -> bool:
    """Whether settings are as written, and where nothing is written as in the base.

    ``1e-5``, which YAML 1.1 calls a text, is read as a number.
    """
    if isinstance(base, Mapping) and isinstance(written, Mapping):
        rest = {name: value for name, value in base.items() if name not in written}
        return (
            written.keys() <= base.keys()
            and all(is_overlaid(read[name], value, base[name]) for name, value in written.items())
            and all(is_same(read[name], value) for name, value in rest.items())
        )
    if isinstance(written, str) and isinstance(read, (int, float)) and not isinstance(read, bool):
        return read == float(written)
    return is_same(read, written)


# --- safetensors ---------------------------------------------------------------------------------


def parse_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file.

    Raises:
        ValueError: If there is no header.
    """
    if len(content) < 8:
        raise ValueError("no length")
    [length] = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise ValueError("the header is longer than the file")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header, content[8 + length :]


def write_safetensors(header: Mapping[str, Any], data: bytes) -> bytes:
    """A safetensors file of a header and data, whether they fit or not."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: If it is none.
    """
    header, data = parse_safetensors(content)
    arrays = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, stop = about["data_offsets"]
        dtype = SAFETENSORS_DTYPES[about["dtype"]]
        arrays[name] = np.frombuffer(data[start:stop], dtype).reshape(about["shape"])
    return arrays


def sealed(header: Mapping[str, Any], data: bytes) -> bytes:
    """A file of tensors of ours with a checksum that holds: what it says may be wrong, not a byte
    of it is torn.
    """
    header = json.loads(json.dumps(header))
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and isinstance(metadata.get("cusa"), str):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            digest = hashlib.sha256(metadata["cusa"].encode())
            for name in sorted(header.keys() - {"__metadata__"}):
                about = header[name]
                start, stop = about["data_offsets"]
                shape = tuple(about["shape"])
                digest.update(f"{name} torch.{_TORCH_NAMES[about['dtype']]} {shape}".encode())
                digest.update(data[start:stop])
            metadata["sha256"] = digest.hexdigest()
    return write_safetensors(header, data)


def resealed(change: Callable[[bytes, Any], bytes]) -> Callable[[bytes, Any], bytes]:
    """A mutator of a sealed file from one of JSON: its metadata change, and its
    checksum with them.
    """

    def mutate_metadata(content: bytes, rng: Any) -> bytes:
        header, data = parse_safetensors(content)
        text = change(header["__metadata__"]["cusa"].encode("utf-8", "replace"), rng)
        header["__metadata__"]["cusa"] = text.decode("utf-8", "replace")
        return sealed(header, data)

    mutate_metadata.__name__ = f"resealed_{getattr(change, '__name__', 'change')}"
    return mutate_metadata


def reseal_tensors(content: bytes, rng: Any) -> bytes:
    """Change one tensor of a sealed file, or its entry, and seal it again."""
    header, data = parse_safetensors(content)
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    about = header[name]
    start, stop = about["data_offsets"]
    change = rng.randrange(7)
    if change == 0:
        del header[name]
    elif change == 1:
        header[rng.choice((name + "x", "", "x", name.upper()))] = header.pop(name)
    elif change == 2:
        about["shape"] = rng.choice(
            ([], [0], [-1], [1, *about["shape"]], about["shape"][::-1], [2**62, 2**62])
        )
    elif change == 3:
        about["dtype"] = rng.choice(("F16", "I32", "F64", "U8", "BOOL", "F8_E4M3", "F4", "x"))
    elif change == 4:
        data = data[:start] + _values(stop - start, rng) + data[stop:]
    elif change == 5:
        other = rng.choice(names)
        header[name] = dict(header[other])
    else:
        header[name + "x"] = dict(about)
    return sealed(header, data)


def _values(n_bytes: int, rng: Any) -> bytes:
    """So many bytes: all NaN, infinite, huge, zero, random, or with a single NaN."""
    words = {
        "nan": b"\0\0\xc0\x7f",
        "inf": b"\0\0\x80\x7f",
        "huge": b"\xff\xff\x7f\x7f",
        "zero": b"\0\0\0\0",
    }
    kind = rng.choice((*words, "random"))
    if kind == "random":
        return rng.randbytes(n_bytes)
    return (words[kind] * (n_bytes // 4 + 1))[:n_bytes]

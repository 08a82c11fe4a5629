"""Names, versions and settings of the HDF5 embedding store; docs/FORMAT.md is its specification."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cusa.data.errors import CusaError

INDEX_FORMAT = "cusa-embeddings"
SHARD_FORMAT = "cusa-embeddings-shard"
VERSION = (1, 0)  # a reader refuses a greater major number, and ignores names that it does not know

_REMEDY = "remove it and run the same cusa-precompute command again, finished shards are kept"


@dataclass(frozen=True)
class TeacherSettings:
    """All that decides a teacher's embeddings: two stores may be mixed only if every field is equal.

    Attributes:
        modality: ``"image"`` or ``"text"``.
        model_id: Name of the model, e.g. ``"sentence-transformers/all-mpnet-base-v2"``.
        weights_sha256: sha256 (hex) of the weights.
        transform: Image preprocessing or tokenisation settings, JSON-compatible.
        normalizer: Caption normaliser (``"none"`` for images).
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``: what the teacher computed in.
        dim: Embedding dimension.
        dtype: ``"float16"`` or ``"float32"``: what the rows are stored as.
        normalized: Whether the rows are L2-normalised.
    """

    modality: str
    model_id: str
    weights_sha256: str
    transform: Mapping[str, Any]
    normalizer: str
    precision: str
    dim: int
    dtype: str
    normalized: bool

    def to_json(self) -> str:
        """Canonical JSON: equal settings give equal text."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> TeacherSettings:
        """The inverse of :meth:`to_json`; fields of a newer minor version are ignored."""
        fields = json.loads(text)
        return TeacherSettings(**{k: fields[k] for k in TeacherSettings.__dataclass_fields__})

    def differing(self, other: TeacherSettings) -> list[str]:
        """The fields that differ, with both values."""
        mine, theirs = json.loads(self.to_json()), json.loads(other.to_json())
        return [f"{k} ({mine[k]!r} / {theirs[k]!r})" for k in mine if mine[k] != theirs[k]]


def file_name(part: str) -> str:
    """A teacher's or split's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", part)


def shard_folder(index: Path) -> Path:
    """The folder beside the index that holds its shards."""
    return index.with_suffix("")


def shard_name(teacher: str, split: str, start: int, stop: int) -> str:
    """Shard path relative to the shard folder; the row range in the name makes the plan visible in a listing."""
    return f"{file_name(teacher)}/{file_name(split)}-{start:09d}-{stop:09d}.h5"


def write_strings(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Store texts as one block of UTF-8 bytes and their offsets."""
    encoded = [v.encode() for v in values]
    offsets = np.zeros(len(encoded) + 1, "<i8")
    np.cumsum([len(e) for e in encoded], out=offsets[1:])
    column = group.create_group(name)
    column.create_dataset("bytes", data=np.frombuffer(b"".join(encoded), np.uint8))
    column.create_dataset("offsets", data=offsets)


def read_strings(group: h5py.Group, name: str) -> list[str]:
    """All texts of a short column."""
    block, offsets = group[name]["bytes"][...].tobytes(), group[name]["offsets"][...]
    return [block[a:b].decode() for a, b in itertools.pairwise(offsets.tolist())]


@contextmanager
def open_checked(path: Path, expected_format: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading and check format and version.

    Raises:
        CusaError: If it is missing, truncated, not HDF5, not of this format or of a newer major version.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise CusaError(f"embedding store {path} does not exist; make it with cusa-precompute --out {path}") from None
    except (OSError, IsADirectoryError) as error:
        if isinstance(error, PermissionError):
            raise CusaError(f"{path}: no permission to read") from None
        raise CusaError(f"{path} is not a readable HDF5 file ({_short(error)}); {_REMEDY}") from None
    with file:
        found = file.attrs.get("format")
        if found != expected_format:
            raise CusaError(
                f"{path} is not a {expected_format} file (its format attribute is {found!r}); name another file"
            )
        major, minor = (int(v) for v in file.attrs["format_version"])
        if major > VERSION[0]:
            raise CusaError(
                f"{path} has format version {major}.{minor}, this cusa reads up to {VERSION[0]}.x; upgrade cusa"
            )
        try:
            yield file
        except (KeyError, OSError) as error:  # a name is missing or its block cannot be read
            raise CusaError(f"{path} is damaged ({_short(error)}); {_REMEDY}") from None


def stamp(file: h5py.File, form: str) -> None:
    """Write format name and version."""
    file.attrs["format"] = form
    file.attrs["format_version"] = np.asarray(VERSION, "<i4")


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0].strip("'\"") if str(error) else type(error).__name__

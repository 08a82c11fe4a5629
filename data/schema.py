"""Names and settings of the HDF5 embedding store; docs/FORMAT.md is its specification."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError


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


def check_name(name: str) -> None:
    """Refuse a name for a new teacher that files and HDF5 groups could not have.

    Raises:
        CusaError: If it is not of letters, digits, ``. _ -``, or begins with a dot.
    """
    if not name or name != file_name(name) or name.startswith("."):
        raise CusaError(f"name {name!r}: legal are letters, digits, . _ -, and no dot at the beginning")


def shard_folder(index: Path) -> Path:
    """The folder beside the index that holds its shards."""
    return index.with_suffix("")


def shard_name(teacher: str, split: str, start: int, stop: int) -> str:
    """Shard path relative to the shard folder; the row range in the name makes the plan visible in a listing."""
    return f"{file_name(teacher)}/{file_name(split)}-{start:09d}-{stop:09d}.h5"


SHARD_ROWS = 16_384


def shard_ranges(n_rows: int, shard_rows: int) -> tuple[tuple[int, int], ...]:
    """Consecutive ranges of ``shard_rows`` rows, the last one shorter."""
    return tuple((a, min(a + shard_rows, n_rows)) for a in range(0, n_rows, shard_rows))

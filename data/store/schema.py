"""Names and settings of the HDF5 embedding store; docs/FORMAT.md is its specification."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cusa.data.errors import FileFormatError, SettingError, StoreError
from cusa.data.parsing import parse_json


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
    def from_json(text: str, path: Path = Path("settings")) -> TeacherSettings:
        """The inverse of :meth:`to_json`; fields of a newer minor version are ignored.

        Args:
            text: The JSON.
            path: The file that it comes from, for messages.

        Raises:
            StoreError: If it is no JSON object, or a field is missing, of another type, or out of
                range; names the field.
        """
        try:
            values = parse_json(text, path)
        except FileFormatError as error:
            raise StoreError(str(error), path=path, name="settings") from None
        for name, is_legal in _LEGAL_SETTINGS.items():
            if not isinstance(values, dict) or name not in values or not is_legal(values[name]):
                message = (
                    f"{path}: field {name!r} of a teacher's settings is missing or no legal value"
                )
                raise StoreError(message, path=path, name=name)
        return TeacherSettings(**{name: values[name] for name in _LEGAL_SETTINGS})

    def differing(self, other: TeacherSettings) -> list[str]:
        """The fields that differ, with both values; of ``transform``, its keys, if the model is one."""
        is_one_model = (self.modality, self.model_id) == (other.modality, other.model_id)
        mine, theirs = self._named_values(is_one_model), other._named_values(is_one_model)
        names = sorted(mine.keys() | theirs.keys())
        differing = [name for name in names if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)]
        return [_difference(name, mine, theirs) for name in differing]

    def _named_values(self, by_key: bool) -> dict[str, Any]:
        """Every value by its field's name; ``by_key``, those of ``transform`` as ``transform.KEY``."""
        values: dict[str, Any] = json.loads(self.to_json())
        if not by_key:
            return values
        transform: dict[str, Any] = values.pop("transform")
        return values | {f"transform.{key}": value for key, value in transform.items()}


_ABSENT = object()  # no JSON value equals it
_LONGEST_SHOWN = 70  # characters of a value in a message: a sha256 is shown
_MAX_DIM = 1 << 20  # a row of more columns is a damaged number


def _difference(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """A field's name with both values, or alone where these are too long to be read."""
    both = [repr(values[name]) if name in values else "absent" for values in (mine, theirs)]
    if max(map(len, both)) > _LONGEST_SHOWN:
        return name
    return f"{name} ({both[0]} / {both[1]})"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dim(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_DIM


def _is_transform(value: object) -> bool:
    """An object of anything, whose "jpeg_draft" is a number of pixels."""
    if not isinstance(value, dict):
        return False
    draft = value.get("jpeg_draft", 1)
    return isinstance(draft, int) and not isinstance(draft, bool) and draft > 0


# What each field of the settings may be.
_LEGAL_SETTINGS: Mapping[str, Callable[[object], bool]] = {
    "modality": lambda value: value in ("image", "text"),
    "model_id": _is_text,
    "weights_sha256": _is_text,
    "transform": _is_transform,
    "normalizer": _is_text,
    "precision": _is_text,
    "dim": _is_dim,
    "dtype": lambda value: value in ("float16", "float32"),
    "normalized": lambda value: isinstance(value, bool),
}


def file_name(part: str) -> str:
    """A teacher's or split's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", part)


def check_name(name: str) -> None:
    """Refuse a name for a new teacher that files and HDF5 groups could not have.

    Raises:
        SettingError: If it is not of letters, digits, ``. _ -``, or begins with a dot.
    """
    if not name or name != file_name(name) or name.startswith("."):
        raise SettingError(
            f"name {name!r}: legal are letters, digits, . _ -, and no dot at the beginning",
            name=name,
        )


def check_index_path(index: Path) -> None:
    """Refuse a path that cannot be a store's.

    Raises:
        SettingError: If it does not end in ``.h5``, or is not UTF-8.
    """
    if index.suffix != ".h5" or not str(index).isprintable():
        raise SettingError(
            f"{str(index)!r}: a store's path must end in .h5 and be plain text; the shards go to a folder of that "
            "name without the suffix",
            path=index,
        )


def shard_folder(index: Path) -> Path:
    """The folder beside the index that holds its shards."""
    return index.with_suffix("")


def shard_name(teacher: str, split: str, start: int, stop: int) -> str:
    """Shard path relative to the shard folder; the row range in the name makes the plan visible in a listing."""
    return f"{file_name(teacher)}/{file_name(split)}-{start:09d}-{stop:09d}.h5"


def shard_path(folder: Path, file: str) -> Path:
    """The file of a shard that an index names.

    Raises:
        StoreError: If the name leads out of the index's folder.
    """
    name = PurePosixPath(file)
    if name.is_absolute() or ".." in name.parts:
        raise StoreError(
            f"{folder / file}: shards lie below the index's folder; see docs/FORMAT.md", path=folder
        )
    return folder / name


SHARD_ROWS = 16_384


def shard_ranges(n_rows: int, shard_rows: int) -> tuple[tuple[int, int], ...]:
    """Consecutive ranges of ``shard_rows`` rows, the last one shorter."""
    return tuple((a, min(a + shard_rows, n_rows)) for a in range(0, n_rows, shard_rows))

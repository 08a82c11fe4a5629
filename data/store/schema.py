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
    """The settings that determine a teacher's embeddings.

    Rows may be mixed only if they were made with equal settings.

    Attributes:
        modality: ``"image"`` or ``"text"``.
        model_id: Name of the model, e.g. ``"sentence-transformers/all-mpnet-base-v2"``.
        weights_sha256: sha256 (hex) of the weights.
        transform: Image preprocessing or tokenisation settings, JSON-compatible.
        normalizer: Caption normaliser (``"none"`` for images).
        precision: Precision of the teacher's computation: ``"fp32"``, ``"fp16"``, ``"bf16"``, or
            ``"unknown"`` for imported rows.
        dim: Embedding dimension.
        dtype: Dtype of the stored rows: ``"float16"`` or ``"float32"``.
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
        """Return canonical JSON: equal settings give equal text."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str, path: Path = Path("settings")) -> TeacherSettings:
        """Parse what :meth:`to_json` wrote; fields of a newer minor version are ignored.

        Args:
            text: The JSON.
            path: The file that it comes from, for messages.

        Raises:
            StoreError: If it is not a JSON object, or a field is missing or not legal; names the
                field.
        """
        try:
            values = parse_json(text, path)
        except FileFormatError as error:
            raise StoreError(str(error), path=path, name="settings") from None

        if not isinstance(values, dict):
            # The error then says that the first field is missing.
            values = {}
        for name, is_legal in _LEGAL_SETTINGS.items():
            if name not in values or not is_legal(values[name]):
                raise StoreError(
                    f"{path}: field {name!r} of a teacher's settings is missing or not legal",
                    path=path,
                    name=name,
                )
        return TeacherSettings(**{name: values[name] for name in _LEGAL_SETTINGS})

    def differences(self, compared: TeacherSettings) -> list[str]:
        """Return the fields that differ, each with both values.

        If both settings are of the same model, ``transform`` is compared key by key.
        """
        # Transforms of different models have little in common, and would give a long list.
        is_one_model = (self.modality, self.model_id) == (compared.modality, compared.model_id)
        own_values = self._named_values(is_one_model)
        compared_values = compared._named_values(is_one_model)

        differences = []
        for name in sorted(own_values.keys() | compared_values.keys()):
            # A key that only one of them has is a difference, too.
            own_value = own_values.get(name, _ABSENT)
            compared_value = compared_values.get(name, _ABSENT)
            if own_value != compared_value:
                differences.append(_difference(name, own_value, compared_value))
        return differences

    def _named_values(self, expand_transform: bool) -> dict[str, Any]:
        """Return every value by its field's name.

        Args:
            expand_transform: Whether each value of ``transform`` gets a name of its own,
                ``transform.KEY``.
        """
        values: dict[str, Any] = json.loads(self.to_json())
        if not expand_transform:
            return values

        transform: dict[str, Any] = values.pop("transform")
        for key, value in transform.items():
            values[f"transform.{key}"] = value
        return values


_ABSENT = object()  # no JSON value equals it
# Characters of a value in a message; a sha256 fits.
_MAX_SHOWN = 70
# A greater dimension is taken for a damaged number.
_MAX_DIM = 1 << 20


def _difference(
    name: str,
    own_value: object,
    compared_value: object,
) -> str:
    """Describe a field that differs, with both values unless they are too long."""
    own_text = _value_text(own_value)
    compared_text = _value_text(compared_value)
    if max(len(own_text), len(compared_text)) > _MAX_SHOWN:
        return name
    return f"{name} ({own_text} / {compared_text})"


def _value_text(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    return repr(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dim(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_DIM


_LEGAL_SETTINGS: Mapping[str, Callable[[object], bool]] = {
    "modality": lambda value: value in ("image", "text"),
    "model_id": _is_text,
    "weights_sha256": _is_text,
    "transform": lambda value: isinstance(value, dict),
    "normalizer": _is_text,
    "precision": _is_text,
    "dim": _is_dim,
    "dtype": lambda value: value in ("float16", "float32"),
    "normalized": lambda value: isinstance(value, bool),
}


def file_name(name: str) -> str:
    """Return a teacher's or split's name as it is written in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def check_name(name: str) -> None:
    """Refuse a teacher's name that is not legal for files and HDF5 groups.

    Raises:
        SettingError: If it is empty, begins with a dot, or has characters other than letters,
            digits and ``. _ -``.
    """
    if not name or name != file_name(name) or name.startswith("."):
        raise SettingError(
            f"name {name!r}: legal are letters, digits and . _ -, without a dot at the beginning",
            name="name",
        )


def check_index_path(index: Path) -> None:
    """Refuse a path that is not legal for the index of a store.

    Raises:
        SettingError: If it does not end in ``.h5``, or is not UTF-8.
    """
    # A name that is not UTF-8 is decoded with lone surrogates, which are not printable.
    if index.suffix != ".h5" or not str(index).isprintable():
        raise SettingError(
            f"{str(index)!r}: a store's path must end in .h5 and be plain text; the shards go to "
            "a folder of that name without the suffix",
            path=index,
        )


def shard_folder(index: Path) -> Path:
    """Return the folder beside the index that holds its shards."""
    return index.with_suffix("")


def shard_name(
    teacher_name: str,
    split_name: str,
    start: int,
    stop: int,
) -> str:
    """Return a shard's path relative to the shard folder.

    With the row range in its name, a listing of the folder shows the plan.
    """
    return f"{file_name(teacher_name)}/{file_name(split_name)}-{start:09d}-{stop:09d}.h5"


def shard_path(folder: Path, shard_file: str) -> Path:
    """Return the path of a shard named in an index.

    Args:
        folder: The index's folder.
        shard_file: The shard's path relative to it.

    Raises:
        StoreError: If the name leads out of the index's folder.
    """
    relative_path = PurePosixPath(shard_file)
    if relative_path.is_absolute() or ".." in relative_path.parts:
        raise StoreError(
            f"{folder / shard_file}: shards must be within the index's folder; see docs/FORMAT.md",
            path=folder,
        )
    return folder / relative_path


# Default rows per shard: 25 MB at 768 columns of float16.
SHARD_ROWS = 16_384


def shard_ranges(n_rows: int, shard_rows: int) -> tuple[tuple[int, int], ...]:
    """Divide rows into consecutive ranges of ``shard_rows`` rows; the last may be shorter."""
    starts = range(0, n_rows, shard_rows)
    return tuple((start, min(start + shard_rows, n_rows)) for start in starts)

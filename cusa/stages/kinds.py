"""Kinds of options: what a caller may pass, and what the stage gets of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from cusa.data.errors import ObjectError
from cusa.data.objects.folder import is_remote
from cusa.data.parsing import refuse_lone_surrogates
from cusa.train.settings import WholeNumber

Suite = Literal["retrieval", "images", "sts", "all"]
Device = Literal["auto", "cpu", "cuda"]
Count = Annotated[WholeNumber, Field(ge=0)]
Positive = Annotated[WholeNumber, Field(ge=1)]


def _as_name(value: Any) -> str:
    """Return a name or path as text."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError("no name or path")
    text = os.fspath(value)
    if not isinstance(text, str) or "\0" in text:
        raise ValueError("no name or path")
    refuse_lone_surrogates(text)
    return text


def _as_path(value: Any) -> Path:
    return Path(_as_name(value))


def _as_local_path(value: Any) -> Path:
    """Return a path of this machine; as one, a URL would make folders of its own name."""
    path = _as_path(value)
    try:
        is_url = is_remote(path)
    except ObjectError:
        is_url = True
    if is_url:
        raise ValueError("a URL")
    return path


def as_names(value: Any) -> tuple[str, ...]:
    """Return one or several names or paths as texts.

    Raises:
        ValueError: If one is neither.
    """
    if isinstance(value, list | tuple):
        return tuple(map(_as_name, value))
    return (_as_name(value),)


def _as_paths(value: Any) -> tuple[Path, ...]:
    return tuple(map(Path, as_names(value)))


def _as_number_range(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("no range of numbers")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError("no range of numbers")
    return value[0], value[1]


def _as_settings(value: Any) -> Any:
    """Accept settings by name, or as ``--set`` takes them."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and all(isinstance(pair, str) for pair in value):
        return value
    raise ValueError("no settings")


Name = Annotated[
    str | os.PathLike[str],
    PlainValidator(_as_name),
    WithJsonSchema({"legal": "a name or a path"}),
]
FilePath = Annotated[
    str | os.PathLike[str], PlainValidator(_as_path), WithJsonSchema({"legal": "a path"})
]
LocalPath = Annotated[
    str | os.PathLike[str],
    PlainValidator(_as_local_path),
    WithJsonSchema({"legal": "a path of this machine"}),
]
Names = Annotated[
    str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    PlainValidator(as_names),
    WithJsonSchema({"legal": "a name or a path, or a list of them"}),
]
Paths = Annotated[
    str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    PlainValidator(_as_paths),
    WithJsonSchema({"legal": "a path, or a list of them"}),
]
SettingValues = Annotated[
    Mapping[str, Any] | Sequence[str],
    PlainValidator(_as_settings),
    WithJsonSchema({"legal": "values by name, such as {'loss.alpha': 0.2, 'epochs': 5}"}),
]
TarRange = Annotated[
    tuple[int, int],
    PlainValidator(_as_number_range),
    WithJsonSchema({"legal": "two numbers of tars, such as (0, 8)"}),
]
ShardRange = Annotated[
    tuple[int, int],
    PlainValidator(_as_number_range),
    WithJsonSchema({"legal": "two numbers of shards, such as (0, 8)"}),
]

"""Checking the content of a run's JSON files against types before it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cusa.data.errors import CusaError, RunError, first_line

T = TypeVar("T")

_MOST_CHARACTERS = 120  # of a location: the keys of a hostile file may be of any length


def checked(kind: type[T], content: Any, name: str) -> T:
    """Make an object of parsed JSON.

    Args:
        kind: A pydantic dataclass or model of the entries that the content must have. Types are
            strict: a bool is not a number, nor a number a text. Other entries are left out.
        content: What the JSON parser returned.
        name: What the error calls the content.

    Raises:
        RunError: If an entry is missing or has another type; ``location`` is its path, such as
            ``"origin.epoch"``.
    """
    # In Python mode, pydantic's strict types would refuse a mapping in place of a dataclass.
    content_json = json.dumps(content)
    try:
        return TypeAdapter(kind).validate_json(content_json, strict=True)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
    keys = map(str, first_error["loc"])
    location = ".".join([name, *keys])[:_MOST_CHARACTERS]
    cause = first_error.get("ctx", {}).get("error")
    if isinstance(cause, CusaError):
        raise RunError(f"{location}: {cause}", location=location, name=cause.name)
    reason = first_line(ValueError(first_error["msg"])).lower()
    raise RunError(f"{location}: {reason}", location=location)


@contextmanager
def named_as_damaged(
    path: Path,
    remedy: str,
    error_class: type[RunError] = RunError,
) -> Iterator[None]:
    """Prefix errors of the block with the file that is damaged, and say what to do.

    Args:
        path: The file.
        remedy: What to do about it.
        error_class: Class of the error to raise.

    Raises:
        RunError: An ``error_class`` with the fields of the block's own error, in its place.
    """
    try:
        yield
    except CusaError as error:
        message = f"{path} is damaged ({error}); {remedy}"
        raise error_class(message, path=path, location=error.location, name=error.name) from None

"""Content of a run's JSON files, checked against types before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cusa.data.errors import CusaError, RunError, first_line

T = TypeVar("T")

_MOST_CHARACTERS = 120  # of a place: keys of a hostile file have any length


def checked(kind: type[T], content: Any, name: str) -> T:
    """Make an object of parsed JSON.

    Args:
        kind: A dataclass or model of pydantic's: entries that the content must have; a bool is no
            number, a number no text. Others are left out.
        content: What the JSON parser returned.
        name: What the error calls it.

    Raises:
        RunError: If an entry is missing or of another type; ``location`` is its place.
    """
    try:
        # In pydantic's JSON mode, strictness still lets mappings stand for dataclasses.
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join([name, *map(str, first["loc"])])[:_MOST_CHARACTERS]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, CusaError):
            raise RunError(f"{location}: {cause}", location=location, name=cause.name) from None
        reason = first_line(ValueError(first["msg"])).lower()
        raise RunError(f"{location}: {reason}", location=location) from None


@contextmanager
def named_as_damaged(
    path: Path, remedy: str, error_class: type[RunError] = RunError
) -> Iterator[None]:
    """Name the file whose content the block refuses, and what to do.

    Raises:
        RunError: Of ``error_class``, in place of the block's own error, with its fields.
    """
    try:
        yield
    except CusaError as error:
        message = f"{path} is damaged ({error}); {remedy}"
        raise error_class(message, path=path, location=error.location, name=error.name) from None

"""Content of a run's JSON files, checked against a form before anything is made of it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cusa.data.errors import RunError, first_line

Form = TypeVar("Form", bound=BaseModel)

_MOST_CHARACTERS = 120  # of a place: keys of a hostile file have any length


def checked(form: type[Form], content: Any, name: str) -> Form:
    """Check parsed JSON.

    Args:
        form: Entries that it must have; a bool is no number, a number no text. Others are left out.
        content: What the JSON parser returned.
        name: What the error calls it.

    Raises:
        RunError: If an entry is missing or of another type; ``location`` is its place.
    """
    try:
        return form.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join([name, *map(str, first["loc"])])[:_MOST_CHARACTERS]
        reason = first_line(ValueError(first["msg"])).lower()
        raise RunError(f"{location}: {reason}", location=location) from None

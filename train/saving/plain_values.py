"""Content of a run's JSON files, checked against its form before anything is made of it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cusa.data.errors import RunError, first_line

Form = TypeVar("Form", bound=BaseModel)


def checked(form: type[Form], content: Any, name: str) -> Form:
    """Check parsed JSON.

    Args:
        form: What it must hold; a bool is no number, a number no text. Other entries are left out.
        content: What the JSON parser returned.
        name: What it is called in the error.

    Raises:
        RunError: If an entry is missing or of another type; ``location`` is its place.
    """
    try:
        return form.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join([name, *map(str, first["loc"])])[:120]
        message = f"{location}: {first_line(ValueError(first['msg'])).lower()}"
        raise RunError(message, location=location) from None

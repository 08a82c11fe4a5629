"""Errors that say which of several measurements they happened in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cusa.data.errors import CusaError


@contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """Begin an error's line with what it happened in."""
    try:
        yield
    except CusaError as error:
        line = f"{name}: {error}"
        raise type(error)(line, path=error.path, location=error.location, name=name) from None

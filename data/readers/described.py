"""Values of JSON documents in messages."""

from __future__ import annotations

from typing import Any

# Characters of a value in a message.
_MAX_SHOWN = 60


def described(value: Any) -> str:
    """Describe a value of a JSON document in a few characters."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    if len(text) <= _MAX_SHOWN:
        return text
    return f"{text[:_MAX_SHOWN]}…"

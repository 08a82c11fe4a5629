"""Kinds of settings and the values that they take, checked wherever a setting is set."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)

from cusa.data.errors import SettingError
from cusa.data.parsing import refuse_lone_surrogates

T = TypeVar("T")

_MOST_CHARACTERS = 4096  # in a setting of text: a name or a path
_SHOWN_CHARACTERS = 60
# Keywords of JSON schemas, and those that pydantic uses for optional numbers.
_BOUNDS = {
    "minimum": "from",
    "ge": "from",
    "exclusiveMinimum": "above",
    "gt": "above",
    "maximum": "to",
    "le": "to",
    "exclusiveMaximum": "to below",
    "lt": "to below",
}
_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _as_number(value: Any) -> int | float:
    """Convert a number to Python's own type; YAML 1.1 reads ``1e-5`` as text."""
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("no number")
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)


def _as_whole_number(value: Any) -> int:
    """Convert a whole number to an int, even if it is written as a float: ``1e3``."""
    number = _as_number(value)
    if isinstance(number, float) and not number.is_integer():  # true for NaN and infinity, too
        raise ValueError("no whole number")
    return int(number)


def _sound_text(text: str) -> str:
    refuse_lone_surrogates(text)
    if "\0" in text or len(text) > _MOST_CHARACTERS:
        raise ValueError("no name or path")
    return text


WholeNumber = Annotated[int, BeforeValidator(_as_whole_number)]
Number = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), AfterValidator(_sound_text)]


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass of settings, whose values are checked wherever they are set.

    Annotate fields with the kinds of this module and give ranges with ``Field``. Checks of several
    fields belong in ``__post_init__``, which raises a :class:`SettingError` with the field's name.

    Args:
        cls: The class.

    Returns:
        The dataclass, whose instances raise a :class:`SettingError` with the field's name when one
        is made with an unknown name or an illegal value.
    """
    config = ConfigDict(extra="forbid")
    make_dataclass = pydantic.dataclasses.dataclass(frozen=True, config=config)
    checked: Any = make_dataclass(cls)
    construct = checked.__init__

    @functools.wraps(construct)
    def construct_in_one_line(self: Any, *args: Any, **values: Any) -> None:
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise _setting_error(checked, error, "") from None

    checked.__init__ = construct_in_one_line
    return cast(type[T], checked)


def validate(cls: type[T], values: Any) -> T:
    """Make nested settings of plain values.

    Args:
        cls: A class of :func:`settings`.
        values: Nested mappings by section and name; settings that are absent have their defaults.

    Raises:
        SettingError: If a name is unknown or a value illegal; ``name`` is its full name, such as
            ``"loss.alpha"``.
    """
    try:
        return TypeAdapter(cls).validate_python(_with_dicts(values))
    except ValidationError as error:
        raise _setting_error(cls, error, "setting ") from None
    except RecursionError:
        raise SettingError(
            "the settings are nested too deeply; expected sections with settings below them"
        ) from None


def _with_dicts(value: Any) -> Any:
    """Replace nested mappings by dicts, the only ones that pydantic reads settings from."""
    if not isinstance(value, Mapping):
        return value
    return {name: _with_dicts(nested) for name, nested in value.items()}


def settings_schema(cls: Any) -> dict[str, Any]:
    """Return the JSON schema of a class of :func:`settings`, with all references resolved."""
    schema = TypeAdapter(cls).json_schema()
    return _without_references(schema, schema.get("$defs", {}))


def _without_references(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    fields = {}
    for name, field in schema.get("properties", {}).items():
        fields[name] = _without_references(field, definitions)
    if not fields:
        return schema
    return {**schema, "properties": fields}


def legal_values(schema: dict[str, Any]) -> str:
    """Describe the values that a setting takes: ``"a whole number from 1 to 1,000,000, or null"``.

    Args:
        schema: The setting's own schema within that of :func:`settings_schema`. Its key ``legal``,
            if there is one, says it.
    """
    if "legal" in schema:
        return schema["legal"]
    if "anyOf" in schema:
        return ", or ".join(map(legal_values, schema["anyOf"]))
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "properties" in schema:
        return f"settings below it: {', '.join(schema['properties'])}"
    match schema["type"]:
        case "array":
            if "enum" not in schema["items"]:
                return f"a list, each of it {legal_values(schema['items'])}"
            return f"a list of {', '.join(schema['items']['enum'])}, each at most once"
        case "string":
            length = "at most"
            if schema.get("minLength", 0):
                length = f"{schema['minLength']} to"
            in_quotes = "(in quotes where it looks like a number)"
            return f"text of {length} {_MOST_CHARACTERS:,} characters {in_quotes}"
        case "integer" | "number" as kind:
            words = "a number"
            if kind == "integer":
                words = "a whole number"
            for keyword, preposition in _BOUNDS.items():
                if keyword in schema:
                    words += f" {preposition} {schema[keyword]:,}"
            return words
    return {"boolean": "true or false", "null": "null"}[schema["type"]]


def _setting_error(cls: Any, error: ValidationError, kind: str) -> SettingError:
    """Describe the first error in one line; ``kind`` is put before the setting's name."""
    first = error.errors(include_url=False)[0]
    schema = settings_schema(cls)
    names: list[str] = []
    for step in first["loc"]:
        fields = schema.get("properties")
        if fields is None:  # within a list
            break
        section = names.copy()
        name = str(step)
        # pydantic names a positional argument by its number.
        if not kind and not names and isinstance(step, int) and step < len(fields):
            name = list(fields)[step]
        names.append(name)
        if name not in fields:
            place = f" in {'.'.join(section)}" if section else ""
            legal = ", ".join(fields)
            full_name = ".".join(names)
            return SettingError(
                f"unknown setting {full_name}; legal{place}: {legal}", name=full_name
            )
        schema = fields[name]

    name = ".".join(names)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):  # raised by a __post_init__
        name = ".".join(filter(None, [*names, cause.name]))
        return SettingError(f"{kind}{name}: {cause}", name=name)
    legal = legal_values(schema)
    if first["type"] == "missing":
        return SettingError(f"{kind}{name} is missing; it must be {legal}", name=name)
    message = f"{kind}{name} must be {legal}, got {shown(first['input'])}"
    return SettingError(message, name=name)


def shortened(text: str) -> str:
    """Shorten a long text for a message to its beginning."""
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}..."


def shown(value: Any) -> str:
    """Describe a value for a message, as Python writes it, shortened if it is long."""
    try:
        return shortened(repr(value))
    except ValueError:
        return "a number of too many digits"

"""Kinds of settings: the values that each takes, checked wherever one is set."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

import pydantic.dataclasses
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from cusa.data.errors import SettingError
from cusa.data.parsing import refuse_half_characters

__all__ = [
    "Field",
    "Flag",
    "Number",
    "Text",
    "WholeNumber",
    "legal_values",
    "settings",
    "shortened",
    "validate",
]

T = TypeVar("T")

_MOST_CHARACTERS = 4096  # of a text setting: names and paths
_SHOWN_CHARACTERS = 60
_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _as_number(value: Any) -> int | float:
    """A number as Python's own; YAML 1.1 reads ``1e-5`` as text."""
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("no number")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _as_whole_number(value: Any) -> int:
    """An integer, also where it is written as a float: ``1e3``."""
    number = _as_number(value)
    if isinstance(number, float) and not number.is_integer():  # nor is NaN, nor infinity
        raise ValueError("no whole number")
    return int(number)


def _sound_text(text: str) -> str:
    refuse_half_characters(text)
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

    Annotate fields with the kinds of this module and give ranges with ``Field``. What concerns
    several fields belongs into ``__post_init__``, which raises :class:`SettingError` with the
    field's name.

    Raises (when an instance is made):
        SettingError: If a name is unknown or a value illegal; names the field.
    """
    checked = cast(
        Any,
        pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls),
    )
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
        values: Mappings by section and name; what is absent has its default.

    Raises:
        SettingError: If a name is unknown or a value illegal; ``name`` is its full name, such as
            ``"loss.alpha"``.
    """
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        raise _setting_error(cls, error, "setting ") from None
    except RecursionError:
        raise SettingError(
            "the settings nest too deeply; expected sections with settings below them",
        ) from None


def legal_values(field: FieldInfo) -> str:
    """Say which values a setting takes: ``"a whole number from 1 to 1,000,000, or null"``.

    Args:
        field: One of ``__pydantic_fields__`` of a class of :func:`settings`.
    """
    words = []
    for kind in _alternatives(field.annotation):
        metadata = [*getattr(kind, "__metadata__", ()), *field.metadata]
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        words.append(_in_words(plain, list(_constraints(metadata))))
    return ", or ".join(words)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _constraints(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _in_words(kind: Any, constraints: list[Any]) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return f"a list of {', '.join(map(str, get_args(get_args(kind)[0])))}, each at most once"
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{_range_in_words(constraints)}"
    if dataclasses.is_dataclass(kind):
        return f"settings below it: {', '.join(field.name for field in dataclasses.fields(kind))}"
    if kind is str:
        least = max((c.min_length for c in constraints if isinstance(c, MinLen)), default=0)
        length = f"{least} to {_MOST_CHARACTERS:,}" if least else f"at most {_MOST_CHARACTERS:,}"
        return f"text of {length} characters (in quotes where it looks like a number)"
    names = {bool: "true or false", NoneType: "null"}
    return names.get(kind, str(kind))


def _range_in_words(constraints: list[Any]) -> str:
    low = high = ""
    for constraint in constraints:
        match constraint:
            case Ge(ge=bound):
                low = f" from {bound:,}"
            case Gt(gt=bound):
                low = f" above {bound:,}"
            case Le(le=bound):
                high = f" to {bound:,}"
            case Lt(lt=bound):
                high = f" to below {bound:,}"
    return low + high


def _setting_error(cls: Any, error: ValidationError, kind: str) -> SettingError:
    """The first error in one line."""
    first = error.errors(include_url=False)[0]
    names, field = _resolve(cls, first["loc"], positional=not kind)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):  # of several fields
        name = ".".join([*names, *([cause.name] if cause.name else [])])
        return SettingError(f"{kind}{name}: {cause}", name=name)
    name = ".".join(names)
    if field is None:
        section = names[:-1]
        legal = ", ".join(".".join([*section, field]) for field in _fields(_section(cls, section)))
        return SettingError(f"unknown setting {name}; legal: {legal}", name=name)
    if first["type"] == "missing":
        return SettingError(f"{kind}{name} is missing; it must be {legal_values(field)}", name=name)
    message = f"{kind}{name} must be {legal_values(field)}, got {_shown(first['input'])}"
    return SettingError(message, name=name)


def _resolve(
    cls: Any,
    path: tuple[Any, ...],
    positional: bool,
) -> tuple[list[str], FieldInfo | None]:
    """Find the names on the way to a value, by pydantic's location, and its field, if there is one.

    Args:
        cls: The class of settings.
        path: Names; where ``positional``, the first may be the number of an argument.
        positional: See ``path``.
    """
    names: list[str] = []
    field: FieldInfo | None = None
    section = cls
    for step in path:
        fields = _fields(section)
        if not fields:  # within a list
            break
        is_position = positional and not names and isinstance(step, int) and step < len(fields)
        name = list(fields)[step] if is_position else str(step)
        names.append(name)
        field = fields.get(name)
        section = field.annotation if field is not None else None
    return names, field


def _section(cls: Any, names: list[str]) -> Any:
    for name in names:
        cls = _fields(cls)[name].annotation
    return cls


def _fields(cls: Any) -> dict[str, FieldInfo]:
    return getattr(cls, "__pydantic_fields__", {})


def shortened(text: str) -> str:
    """A text for a message: its beginning, where it is long."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _shown(value: Any) -> str:
    try:
        return shortened(repr(value))
    except ValueError:
        return "a number of too many digits"

"""Arguments of the stages: checked, and named where Python shows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from cusa.data.readers.columns import ColumnNames
from cusa.train.settings import validate

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(form: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options, and leave out those that are ``None``.

    Args:
        form: The options' typed dictionary.
        options: The options as given.

    Raises:
        SettingError: If an option is unknown or its value illegal; ``name`` is its name.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return validate(form, given)


def columns_of(options: Mapping[str, Any]) -> ColumnNames:
    """Return the names of columns among checked options."""
    return ColumnNames(
        image=options.get("image_column"),
        caption=options.get("caption_column"),
        image_id=options.get("id_column"),
        split=options.get("split_column"),
    )


def with_options(form: type) -> Callable[[Function], Function]:
    """Name the options of a typed dictionary in a function's signature and documentation.

    Python itself shows ``**options: Unpack[...]``.

    Args:
        form: The options' typed dictionary, whose docstring describes them.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *parameters, _ = signature.parameters.values()
        # Without the marks that only the check reads.
        for name, annotation in get_type_hints(form).items():
            option = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            parameters.append(option)
        vars(function)["__signature__"] = signature.replace(parameters=parameters)
        _, _, descriptions = inspect.cleandoc(form.__doc__ or "").partition("Attributes:\n")
        description = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = f"{description}\n\nKeyword Args:\n{descriptions}"
        return function

    return decorate

"""A package that is also a function, as ``cusa.train``: a room, and the stage that it is for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """The package ``cusa.NAME``, which calls ``cusa.stages.NAME.NAME``."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function, imported on first use; ``inspect`` takes the signature from it."""
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(f"cusa.stages.{name}"), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        return self.__wrapped__(*args, **options)

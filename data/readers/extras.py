"""Optional packages, which only some forms of data need."""

from __future__ import annotations

import importlib
from types import ModuleType

from cusa.data.errors import DataError


def import_extra(module: str, needed_for: object) -> ModuleType:
    """Import a module of the extra ``huggingface``.

    Args:
        module: Its name, such as ``"pyarrow.parquet"``.
        needed_for: What needs the module, for the message: a path or a name.

    Raises:
        DataError: If it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        message = f"{needed_for} needs the package {package}: pip install 'cusa[huggingface]'"
        raise DataError(message, name=package) from None

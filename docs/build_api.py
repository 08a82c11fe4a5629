"""Build the API reference from the docstrings: ``make docs``, or ``build_api.py FOLDER``."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from pkgutil import ModuleInfo, iter_modules
from types import ModuleType
from unittest import mock

import pdoc.extract
import pdoc.render
import torch
from pydantic.fields import FieldInfo

import cusa
import cusa.hosts

# The public names, the kinds of errors, and the loss in other libraries' trainers.
MODULES = ("cusa", "cusa.data.errors", "cusa.hosts")
_modules_of_pdoc = pdoc.extract.iter_modules2


def build(folder: Path) -> Path:
    """Write the HTML pages to a folder, and return the path of the first one."""
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"cusa {cusa.__version__}"
    )
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(pdoc.extract, "iter_modules2", _modules_below))
        for name in cusa.__all__:
            # A package that can be called is documented as the function that it wraps.
            public = getattr(cusa, name)
            public = getattr(public, "__wrapped__", public)
            patches.enter_context(mock.patch.dict(vars(cusa), {name: public}))
            if hasattr(public, "__pydantic_fields__"):
                _show_as_dataclass(public, patches)
            elif hasattr(public, "_fields"):
                _show_named_tuple(public, patches)
            elif inspect.isclass(public):
                _replace_inherited_docstring(public, patches)
        for public in _classes_of_hosts():
            _replace_inherited_docstring(public, patches)
        pdoc.pdoc(*MODULES, output_directory=folder)
    return folder / "cusa.html"


def _modules_below(module: ModuleType) -> dict[str, ModuleInfo]:
    """List the modules to document in a package: for ``cusa``, only its public names."""
    return {} if module is cusa else _modules_of_pdoc(module)


def _classes_of_hosts() -> Iterator[type]:
    for info in iter_modules(cusa.hosts.__path__, "cusa.hosts."):
        for public in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(public) and public.__module__ == info.name:
                yield public


def _show_as_dataclass(settings: type, patches: ExitStack) -> None:
    """Show a class of settings as a plain dataclass.

    pydantic's ``__init__`` takes anything, and the types and defaults of fields hold their checks.
    """
    types = typing.get_type_hints(settings)
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in inspect.signature(settings).parameters.values():
        parameters.append(field.replace(annotation=types[field.name]))

    def constructor(self: object) -> None:
        pass

    constructor.__signature__ = inspect.Signature(parameters)
    patches.enter_context(mock.patch.object(settings, "__init__", constructor))
    patches.enter_context(mock.patch.object(settings, "__annotations__", types))
    for name, default in list(vars(settings).items()):
        if isinstance(default, FieldInfo):
            patches.enter_context(mock.patch.object(settings, name))
            delattr(settings, name)


def _show_named_tuple(public: type, patches: ExitStack) -> None:
    """Resolve the types of a named tuple, and hide "Alias for field number 0" and the like."""
    types = typing.get_type_hints(public)
    patches.enter_context(mock.patch.object(public.__new__, "__annotations__", types))
    for documented in (public.__new__, *(vars(public)[name] for name in public._fields)):
        patches.enter_context(mock.patch.object(documented, "__doc__", ""))


def _replace_inherited_docstring(public: type, patches: ExitStack) -> None:
    """Show the reader the arguments, instead of what torch says of the ``__init__`` of modules."""
    constructor = vars(public).get("__init__")
    if issubclass(public, torch.nn.Module) and constructor and constructor.__doc__ is None:
        docstring = "The arguments are described above."
        patches.enter_context(mock.patch.object(constructor, "__doc__", docstring))


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")))

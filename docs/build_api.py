"""Build the API reference from the docstrings: ``make docs``, or ``build_api.py FOLDER``."""

import inspect
import sys
import typing
from pathlib import Path

import pdoc
import pdoc.render

import cusa

# The public names, the kinds of errors, and the loss in other libraries' trainers.
MODULES = ("cusa", "cusa.data.errors", "cusa.hosts")


def build(folder: Path) -> Path:
    """Write the HTML pages to a folder, and return the path of the first one."""
    for name in cusa.__all__:
        public = getattr(cusa, name)
        if hasattr(public, "__pydantic_fields__"):
            _simplify_settings(public)
        elif hasattr(public, "_fields"):
            # A named tuple's types are still texts, which pdoc would look up in another module.
            public.__new__.__annotations__ = typing.get_type_hints(public)
        elif inspect.isclass(public):
            _hide_inherited_docstring(public)
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"cusa {cusa.__version__}"
    )
    pdoc.pdoc(*MODULES, output_directory=folder)
    return folder / "cusa.html"


def _simplify_settings(settings: type) -> None:
    """Show a class of settings as a plain dataclass: pydantic's ``__init__`` takes anything, and
    the types of its fields contain their checks.
    """
    types = typing.get_type_hints(settings)
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in inspect.signature(settings).parameters.values():
        parameters.append(field.replace(annotation=types[field.name]))

    def constructor(self: object) -> None:
        pass

    constructor.__signature__ = inspect.Signature(parameters)
    settings.__init__ = constructor
    settings.__annotations__ = types


def _hide_inherited_docstring(public: type) -> None:
    """Show nothing below a constructor without a docstring, instead of that of torch's modules."""
    constructor = vars(public).get("__init__")
    if constructor is not None and constructor.__doc__ is None:
        constructor.__doc__ = ""


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")))

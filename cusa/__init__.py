"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

Errors are of the classes in :mod:`cusa.data.errors`, all of them a :class:`CusaError`. Modules for
the trainers of other libraries are in :mod:`cusa.hosts`.

The public names are imported from the subpackages on first use, so that ``import cusa`` stays fast.
"""

import importlib
from pathlib import Path
from typing import Any

import lazy_loader

__version__ = "0.1.0"

# Python started in a copy of the repository imports this folder instead of what is installed. The
# other subpackages then lie beside it.
_folder = Path(__file__).parent
if not (_folder / "data").is_dir():
    __path__.append(str(_folder.parent))

_public_object, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    # These packages are functions, too (cusa.callable_package); type checkers see the functions.
    if name in ("precompute", "train"):
        return importlib.import_module(f"{__name__}.{name}")
    return _public_object(name)

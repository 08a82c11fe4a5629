"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

The public names are defined in the subpackages (``cusa.data``, ``cusa.precompute``, ``cusa.train``,
``cusa.eval``) and imported on first use, so that ``import cusa`` stays fast. ``__init__.pyi`` lists
them.
"""

import importlib
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_public_object, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    # These packages are functions, too (cusa.callable_package); type checkers see the functions.
    if name in ("precompute", "train"):
        return importlib.import_module(f"{__name__}.{name}")
    return _public_object(name)

"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

The public names are defined in the subpackages (``cusa.data``, ``cusa.precompute``, ``cusa.train``,
``cusa.eval``) and imported on first use, so that ``import cusa`` stays fast. ``__init__.pyi`` lists
them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

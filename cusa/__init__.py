"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

The public names live in the rooms (``cusa.data``, ``cusa.precompute``, ``cusa.train``,
``cusa.eval``) and load on first use, so that ``import cusa`` stays cheap. ``__init__.pyi`` lists
them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""CUSA: cross-modal and uni-modal soft-label alignment for image-text retrieval.

Errors are of the classes in :mod:`cusa.data.errors`, all of them a :class:`CusaError`. Modules for
the trainers of other libraries are in :mod:`cusa.hosts`.

The public names are imported from the subpackages on first use, so that ``import cusa`` stays fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

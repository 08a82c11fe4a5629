"""Stage one, :func:`cusa.stages.precompute.precompute`, which a call of this package runs."""

import sys

from cusa.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage

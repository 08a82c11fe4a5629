"""Annotation files of every known form, as rows of images with their captions.

A form is recognised by what a file holds, not by what it is called. Each has a module of its own
that exports a :class:`cusa.data.readers.forms.Form`; a new one is added to a tuple in
:mod:`cusa.data.readers.files`.
"""

from cusa.data.readers.files import read_annotations
from cusa.data.readers.forms import Source

__all__ = ["Source", "read_annotations"]

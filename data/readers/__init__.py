"""Readers of annotation files, which turn every known form into rows of an image with captions.

A form is recognised by a file's contents, not by its name. Each form of JSON document has a module
that exports a :class:`cusa.data.readers.forms.Form`, listed in
:data:`cusa.data.readers.files.DOCUMENT_FORMS`.
"""

from cusa.data.readers.files import read_annotations
from cusa.data.readers.forms import Source

__all__ = ["Source", "read_annotations"]

"""What names a data set: a text or path, checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from typing import Any, NoReturn

from cusa.data.errors import DataError
from cusa.data.readers import memory
from cusa.data.readers.forms import LEGAL_DATASETS
from cusa.data.readers.saved_dataset import HUB_PREFIX
from cusa.data.shell import flag_of

# Where the annotations of a named data set lie in its folder, the likeliest first.
ANNOTATIONS = {
    "coco": ("dataset_coco.json", "annotations/dataset_coco.json"),
    "flickr30k": ("dataset_flickr30k.json", "annotations/dataset_flickr30k.json"),
    "flickr8k": (
        "dataset_flickr8k.json",
        "annotations/dataset_flickr8k.json",
        "Flickr8k.token.txt",
        "Flickr8k_text/Flickr8k.token.txt",
    ),
}


def source_texts(sources: Any) -> list[str]:
    """Return names and paths as texts.

    Raises:
        DataError: If one is something else, empty, or must stand alone and does not.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if not isinstance(sources, Sequence | Set) or isinstance(sources, bytes):
        _refuse_source(sources)
    texts = []
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            _refuse_source(source)
        text = as_utf8(os.fsdecode(source), "dataset")
        # An empty path would be the folder that the command runs in.
        is_empty = not text or text == HUB_PREFIX
        if is_empty or (text.endswith("=") and not os.path.exists(text)):
            raise DataError(
                f"--dataset {text!r} names nothing; pass {LEGAL_DATASETS}", name="dataset"
            )
        texts.append(text)
    if not texts:
        raise DataError(f"no data set given; pass --dataset {LEGAL_DATASETS}")
    for text in texts:
        is_name = text in (*ANNOTATIONS, "demo") or text.startswith(HUB_PREFIX)
        if is_name and len(texts) > 1 and not os.path.exists(text):
            raise DataError(
                f"--dataset {text} is a data set of its own, and others are given beside it; pass "
                "it alone",
                name="dataset",
            )
    return texts


def _refuse_source(source: Any) -> NoReturn:
    kind = type(source).__name__
    problem = f"a data set cannot be of type {kind}"
    if isinstance(source, dict) and not source:
        problem = f"the {kind} is empty"
    message = f"{problem}; pass {LEGAL_DATASETS}, or {memory.LEGAL_ROWS}"
    raise DataError(message, name=kind)


def as_utf8(name: str, option: str) -> str:
    """Return a path that can be written down; others are refused before anything is computed.

    Args:
        name: The path.
        option: The option that it was given as.

    Raises:
        DataError: If the path is not UTF-8.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        message = f"{flag_of(option)} {name!r}: the name is not UTF-8; rename it"
        raise DataError(message, name=option) from None
    return name

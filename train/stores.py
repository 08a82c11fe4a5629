"""What a student learns from: the store of a data set, or a set of WebDataset tars."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.verify import holds_set

# What a student may be trained on.
Store: TypeAlias = EmbeddingStore | TarSet


def open_store(
    path: str | os.PathLike[str],
    image_root: str | None = None,
) -> Store:
    """Open the store or the set of tars that a path names.

    Args:
        path: The index of a store, or the folder of a set, which may be a URL.
        image_root: The folder of a set's tars, if it is not the one that the set names; it may be
            a URL.

    Raises:
        StoreError: If it is neither, or damaged.
        ObjectError: If an object store does not give the manifest of a set.
    """
    if not holds_set(Path(path)):
        return EmbeddingStore(path)
    root = None
    if image_root is not None:
        root = Path(image_root)
    return TarSet(path, root)

"""What a student learns from: the store of a data set, or a set of WebDataset tars."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import TeacherSettings
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.verify import holds_set


class Store(Protocol):
    """What training asks of embeddings in whatever form they are stored."""

    @property
    def path(self) -> Path:
        """Return the index of a store, or the folder of a set."""

    @property
    def dataset(self) -> str:
        """Return the name of the data set."""

    @property
    def splits(self) -> Mapping[str, Split]:
        """Return the splits that a student can be validated on, by name."""

    @property
    def teachers(self) -> Mapping[str, TeacherSettings]:
        """Return the settings of each teacher by its name."""

    @property
    def sources(self) -> Mapping[str, str]:
        """Return where each teacher's model was loaded from, by the teacher's name."""

    def fingerprint(self, split: str) -> str:
        """Return a sha256 (hex) over what a split consists of.

        Raises:
            StoreError: If there is no such split.
        """

    def pick_teacher(self, modality: str, name: str | None, flag: str) -> str:
        """Return the name of a modality's teacher, as :meth:`EmbeddingStore.pick_teacher` does."""


def open_store(
    path: str | os.PathLike[str],
    image_root: str | None = None,
) -> EmbeddingStore | TarSet:
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

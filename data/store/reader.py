"""Reading of a store: its splits, its teachers' settings, and their rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.objects.folder import is_remote, location_text
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    read_seal,
    seal_holds,
)
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.hdf5 import child_group, child_groups, text_attribute
from cusa.data.store.index_checks import (
    image_root,
    read_settings,
    read_versions,
    refuse_index,
)
from cusa.data.store.joined import JoinedDataset, join
from cusa.data.store.mapped_file import MappedFile
from cusa.data.store.mapped_split import Split
from cusa.data.store.part_texts import require_same_split, texts_path_of_part
from cusa.data.store.schema import TeacherSettings
from cusa.data.store.teacher_choice import pick_teacher

# Up to this size, an index is verified whenever it is opened, in about a tenth of a second; COCO's
# is smaller. A larger one is verified by EmbeddingStore.verify_index, which the trainer calls.
VERIFIED_BYTES = 256 << 20


class EmbeddingStore:
    """An embedding store, opened for reading.

    Opening verifies an index of up to 256 MiB, and of a part the file of its texts, and reads a few
    attributes; rows are mapped on first use. A store can be pickled, for other processes.
    ``store["unicom", "train"]`` returns the rows of a teacher for a split.

    Args:
        path: The ``.h5`` index.

    Attributes:
        path: The index.
        dataset: Name of the data set.
        image_root: Folder that image paths are relative to.
        splits: Splits by name.
        teachers: Settings by teacher name.
        versions: Library versions by teacher name.
        sources: Where each teacher's model was loaded from, by teacher name.

    Raises:
        StoreError: If it is no path, or the file is missing, damaged, of another major version, or
            not the index of a store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise StoreError(
                f"the path of an embedding store, NAME.h5, is needed; got {type(path).__name__}",
                name="path",
            )
        self.path = Path(path)
        if is_remote(self.path):
            raise StoreError(
                f"{location_text(self.path)} is in an object store, and a store is read from a "
                "disk; copy it to one (sets of tars may stay, but this command takes stores alone)",
                path=self.path,
            )
        if not self.path.exists():
            raise StoreError(
                f"embedding store {path} does not exist; make it with cusa-precompute --out {path}",
                path=self.path,
            )
        if self.path.is_dir():
            raise StoreError(
                f"{path} is a folder, and a store is a file NAME.h5; pass that (a set of tars is a "
                "folder with set.h5 or pairs/, but some commands take stores alone)",
                path=self.path,
            )
        self._seal = read_seal(self.path, INDEX_FORMAT)
        self._is_verified = False
        if self.path.stat().st_size <= VERIFIED_BYTES:
            # Verified before the HDF5 library parses the file.
            self.verify_index()
        self._index = MappedFile(self.path, INDEX_FORMAT, self._seal)

        self.splits: dict[str, Split] = {}
        self.teachers: dict[str, TeacherSettings] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.sources: dict[str, str] = {}
        self._splits_of: dict[str, list[str]] = {}
        with self._index.opened() as file:
            self._read(file)

    def _read(self, file: h5py.File) -> None:
        """Read names and settings; columns and rows are mapped later."""
        self.dataset = text_attribute(file, "dataset")
        self.image_root = image_root(self.path, file)
        texts_path = texts_path_of_part(self.path, file)
        if texts_path is not None:
            self._read_texts(file, texts_path)
        else:
            for name, group in child_groups(child_group(file, "splits")).items():
                self.splits[name] = Split(name, self._index, group)
        for name, group in child_groups(child_group(file, "teachers")).items():
            self.teachers[name] = read_settings(self.path, group)
            self.sources[name] = text_attribute(group, "source")
            self.versions[name] = read_versions(group)
            self._splits_of[name] = list(child_groups(group))

    def _read_texts(self, part: h5py.File, texts_path: Path) -> None:
        """Read the splits of a part from the file of their texts."""
        if not seal_holds(texts_path, INDEX_FORMAT):
            refuse_index(texts_path)
        texts = MappedFile(texts_path, INDEX_FORMAT, read_seal(texts_path, INDEX_FORMAT))
        with texts.opened() as file:
            splits: dict[str, Split] = {}
            for name, group in child_groups(child_group(file, "splits")).items():
                splits[name] = Split(name, texts, group)
        for name, group in child_groups(child_group(part, "splits")).items():
            require_same_split(self.path, group, splits.get(name))
            self.splits[name] = splits[name]

    def verify_index(self) -> None:
        """Read every byte of the index and compare the checksum, at 1 to 2 GB per second.

        Opening does this for an index of up to 256 MiB. An index is verified only once.

        Raises:
            StoreError: If the index is damaged.
        """
        if not self._is_verified and not seal_holds(self.path, INDEX_FORMAT):
            refuse_index(self.path)
        self._is_verified = True

    def __getitem__(self, names: tuple[str, str]) -> Embeddings:
        """Return the rows of a teacher for a split: ``store[teacher, split]``.

        See :meth:`embeddings`.
        """
        if not isinstance(names, tuple) or len(names) != 2:
            raise TypeError("index a store by a teacher and a split: store[teacher, split]")
        return self.embeddings(*names)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            "a store is not an array; take a teacher's rows: np.asarray(store[teacher, split])"
        )

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(split):,} images" for name, split in self.splits.items())
        teachers = ", ".join(self.teachers)
        return f"<EmbeddingStore {str(self.path)!r}: {splits}; teachers: {teachers}>"

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            StoreError: If the store has no such split.
        """
        if name not in self.splits:
            message = f"{self.path} has no split {name!r}; it has: {', '.join(self.splits)}"
            raise StoreError(message, path=self.path, name=name)
        return self.splits[name]

    def fingerprint(self, split: str) -> str:
        """Return the fingerprint of a split: sha256 (hex) over its ids, paths and captions.

        Raises:
            StoreError: If the store has no such split.
        """
        return self.split(split).fingerprint

    def join(
        self,
        items: Any,
        split: str,
        *,
        caption_ids: Sequence[str | int] | None = None,
        annotations: str | Path | Sequence[Mapping[str, Any]] | None = None,
    ) -> JoinedDataset:
        """Join a map-style data set with the caption rows of a split.

        Args:
            items: The data set, with an item for each caption; it has ``items[i]`` and
                ``len(items)``.
            split: Name of the split that the items belong to.
            caption_ids: As :func:`cusa.join` takes them.
            annotations: As :func:`cusa.join` takes them.

        Raises:
            StoreError: If the store has no such split.
            DataError: As :func:`cusa.join` raises it.
        """
        return join(items, self.split(split), caption_ids=caption_ids, annotations=annotations)

    def pick_teacher(
        self,
        modality: str,
        name: str | None,
        flag: str,
    ) -> str:
        """Return the name of a modality's teacher: the one requested, or the only one.

        Args:
            modality: ``"image"`` or ``"text"``.
            name: The teacher's name; ``None``: the only one.
            flag: The command-line option for its name, for error messages.

        Raises:
            StoreError: If there is no such teacher, or several and no name.
        """
        return pick_teacher(str(self.path), self.teachers, modality, name, flag)

    def skipped(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a split that any teacher skipped, as unreadable or empty.

        Returns:
            Image rows and caption rows, each int64 ``[n]``, ascending.

        Raises:
            StoreError: If a teacher's rows cannot be opened.
        """
        # np.concatenate refuses an empty list.
        no_rows = np.zeros(0, np.int64)
        rows: dict[str, list[np.ndarray]] = {"image": [no_rows], "text": [no_rows]}
        for teacher, settings in self.teachers.items():
            if split in self.splits_of(teacher):
                rows[settings.modality].append(self.embeddings(teacher, split).skipped)
        image_rows = np.unique(np.concatenate(rows["image"]))
        caption_rows = np.unique(np.concatenate(rows["text"]))
        return image_rows, caption_rows

    def splits_of(self, teacher: str) -> list[str]:
        """Return the names of the splits that a teacher has rows for."""
        return list(self._splits_of[teacher])

    def embeddings(self, teacher: str, split: str) -> Embeddings:
        """Return the rows of a teacher for a split.

        Args:
            teacher: The teacher's name.
            split: The split's name.

        Raises:
            StoreError: If there is no such teacher or split, or the teacher has no rows, or not all
                rows, for the split.
        """
        if teacher not in self.teachers:
            message = f"{self.path} has no teacher {teacher!r}; it has: {', '.join(self.teachers)}"
            raise StoreError(message, path=self.path, name=teacher)
        split_columns = self.split(split)
        if split not in self._splits_of[teacher]:
            raise StoreError(
                f"{self.path}: teacher {teacher!r} has no rows for split {split!r}; "
                f"run cusa-precompute with --splits {split}",
                path=self.path,
                name=teacher,
            )

        with self._index.opened() as file:
            teacher_group = child_group(child_group(file, "teachers"), teacher)
            split_group = child_group(teacher_group, split)
            settings = self.teachers[teacher]
            return Embeddings(
                teacher,
                settings,
                split_columns,
                self._index,
                split_group,
            )


GivenStore: TypeAlias = EmbeddingStore | str | os.PathLike[str]


def opened(store: GivenStore) -> EmbeddingStore:
    """Return a store that is opened already, or open that of a path.

    Raises:
        StoreError: As :class:`EmbeddingStore` raises it.
    """
    if isinstance(store, EmbeddingStore):
        return store
    return EmbeddingStore(store)

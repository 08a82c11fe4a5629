"""Reading the store: captions, ids and memory-mapped teacher rows, with no HDF5 handle held."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import NoReturn, overload

import h5py
import numpy as np
from numpy.typing import DTypeLike

from cusa.data.errors import StoreError
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    SHARD_FORMAT,
    MappedFile,
    open_sealed,
    read_seal,
    require_seal,
    seal_holds,
)
from cusa.data.store.hdf5 import (
    ArrayLocation,
    array_location,
    child_group,
    child_groups,
    read_array,
    refuse,
    text_attribute,
)
from cusa.data.store.index_checks import (
    check_skipped,
    image_root,
    read_bounds,
    read_settings,
    read_versions,
    refuse_index,
)
from cusa.data.store.mapped_split import Split, Strings, without_arrays
from cusa.data.store.row_window import RowIndex, RowWindow, indexed_rows
from cusa.data.store.schema import TeacherSettings, shard_path
from cusa.data.store.shards import DIGEST_BYTES, read_picture_digests

# An index of this length is read whole at every opening, a tenth of a second's work; COCO's has
# less. Of a longer one, EmbeddingStore.verify_index does so, which the trainer calls.
VERIFIED_BYTES = 256 << 20
_HASHING_THREADS = 4


class Embeddings:
    """The rows of one teacher for one split: ``[n_rows, dim]``, gathered by row number.

    Opening it costs the same for any number of rows; each shard is checked and mapped when a row of it is first asked
    for, or by :meth:`require_shards`.

    Attributes:
        teacher: The teacher's name in the store.
        split: The split's name.
        settings: Its settings.
        shape: ``(n_rows, dim)``.
    """

    def __init__(
        self,
        teacher: str,
        settings: TeacherSettings,
        split: Split,
        index: MappedFile,
        part: h5py.Group,
    ) -> None:
        self.teacher, self.split, self.settings = teacher, split.name, settings
        listing = child_group(part, "shards")
        bounds = read_bounds(listing)
        n_rows = split.n_images if settings.modality == "image" else split.n_captions
        starts, stops = np.append(bounds[:, 0], n_rows), np.append(0, bounds[:, 1])
        if (starts != stops).any():
            row = int(np.minimum(starts, stops)[starts != stops][0])
            raise StoreError(
                f"{index.path}: the shards of teacher {teacher!r} do not hold all {n_rows} rows of split "
                f"{split.name!r} (row {row} on); join parts with cusa-store merge, or run the "
                "cusa-precompute command to the end",
                path=index.path,
                name=teacher,
            )
        self._bounds, self._offsets = starts, read_array(listing, "offsets", "<i8")
        self._files, self._seals = (
            Strings(index, listing, "files"),
            Strings(index, listing, "sha256"),
        )
        if {len(self._files), len(self._seals), len(self._offsets)} != {len(bounds)}:
            refuse(index.path, listing.name, "its columns are of different lengths")
        self._index, self._skipped = index, array_location(part, "skipped", "<i8")
        self.shape = (n_rows, settings.dim)

    @cached_property
    def skipped(self) -> np.ndarray:
        """int64, ascending: the rows without an embedding (they hold NaN).

        Raises:
            StoreError: If they do not ascend within the split.
        """
        rows = self._index.array(self._skipped)
        check_skipped(
            rows, len(self), self._index.path, self._skipped.name.removesuffix("/skipped")
        )
        return rows

    @cached_property
    def _window(self) -> RowWindow:
        return RowWindow(self._bounds, self.shape[1], self.dtype, self._map)

    @cached_property
    def _exceeds_memory(self) -> bool:
        """Whether the rows cannot all stay in memory; reading ahead of random rows then only drives others out."""
        return (
            len(self) * self.shape[1] * self.dtype.itemsize
            > os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE / 2
        )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def n_shards(self) -> int:
        """Number of shard files."""
        return len(self._files)

    @property
    def dtype(self) -> np.dtype:
        """float16 or float32."""
        return np.dtype(self.settings.dtype)

    def shard_path(self, number: int) -> Path:
        """The file of a shard."""
        return shard_path(self._index.path.parent, self._files[number])

    def require_shards(self) -> None:
        """Check that every shard is there and is the one that the index names: reads 512 bytes of each.

        Raises:
            StoreError: If one is missing or another; names it.
        """
        for number in range(self.n_shards):
            # HDF5 would read a missing shard as fill values without a word.
            require_seal(self.shard_path(number), SHARD_FORMAT, self._seals[number])

    def verify_shards(self) -> None:
        """Read every byte of every shard and compare it with the checksums.

        Raises:
            StoreError: If one is missing, damaged, or another; names it.
        """
        self.require_shards()
        paths = [self.shard_path(number) for number in range(self.n_shards)]
        with ThreadPoolExecutor(_HASHING_THREADS) as threads:
            hold = list(threads.map(lambda path: seal_holds(path, SHARD_FORMAT), paths))
        for path, holds in zip(paths, hold, strict=True):
            if not holds:
                message = f"{path} is damaged: its checksum does not hold; see cusa-store verify"
                raise StoreError(message, path=path)

    def picture_digests(self) -> np.ndarray:
        """Read the sha256 of the rows' picture files: uint8 ``[n_rows, 32]``, zeros where unknown.

        Raises:
            StoreError: If a shard cannot be read.
        """
        digests = np.zeros((len(self), DIGEST_BYTES), np.uint8)
        for number in range(self.n_shards):
            start, stop = self._bounds[number : number + 2].tolist()
            recorded = read_picture_digests(self.shard_path(number), self._seals[number])
            if recorded is not None and len(recorded) == stop - start:
                digests[start:stop] = recorded
        return digests

    def gather(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows by number, in the order asked for.

        Args:
            rows: int ``[n]``, each in ``[0, n_rows)``.

        Returns:
            ``[n, dim]`` in the stored dtype, L2-normalised if ``settings.normalized``; NaN for skipped rows.

        Raises:
            IndexError: If a row is out of range or no integer, or ``rows`` has not one dimension.
            StoreError: If a shard is missing or truncated, or is not the one that the index was
                written for.
        """
        numbers = np.asarray(rows)
        if numbers.ndim != 1:
            raise IndexError(f"rows are gathered by int [n]; got shape {numbers.shape}")
        return self._window.gather(numbers)

    @overload
    def __getitem__(self, rows: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> np.ndarray: ...
    def __getitem__(self, rows: RowIndex) -> np.ndarray:
        """Rows as an array would give them, copied: ``[dim]`` of a row, ``[n, dim]`` of several.

        Args:
            rows: A row, a slice, int ``[n]``, or bool ``[n_rows]``; negative rows count from the
                end. For batches, :meth:`gather` is faster.

        Raises:
            IndexError: If a row is out of range, or ``rows`` is something else.
            StoreError: As :meth:`gather`.
        """
        numbers = indexed_rows(rows, len(self))
        return self.gather(numbers) if numbers.ndim else self.gather(numbers[None])[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory: ``[n_rows, dim]``."""
        if copy is False:
            raise ValueError("the rows lie in files; an array of them is always a copy")
        rows = self.gather(np.arange(len(self)))
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __repr__(self) -> str:
        n_rows, dim = self.shape
        return f"<Embeddings of {self.teacher!r}, split {self.split!r}: {n_rows:,} x {dim} {self.dtype}>"

    def __getstate__(self) -> dict[str, object]:
        state = {**without_arrays(self), "_bounds": self._bounds, "_offsets": self._offsets}
        state.pop("_window", None)
        return state

    def _map(self, number: int) -> np.ndarray:
        path, seal = self.shard_path(number), self._seals[number]
        offset, size = int(self._offsets[number]), self.dtype.itemsize
        if offset % size:
            raise StoreError(
                f"{path}: its rows begin at an odd place; see docs/FORMAT.md", path=path
            )
        shape = int(self._bounds[number + 1] - self._bounds[number]), self.shape[1]
        file = MappedFile(path, SHARD_FORMAT, seal, reads_ahead=not self._exceeds_memory)
        return file.array(ArrayLocation("rows", offset, shape, self.dtype.str))


class EmbeddingStore:
    """An embedding store, opened for reading.

    Opening reads a few attributes, and verifies an index of up to 256 MiB; rows are mapped on first
    use. Instances may be sent to other processes. ``store["unicom", "train"]`` are the rows of a
    teacher for a split.

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
        StoreError: If the file is missing, damaged, of a newer format, or no embedding store.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            message = (
                f"embedding store {path} does not exist; make it with cusa-precompute --out {path}"
            )
            raise StoreError(message, path=self.path)
        self._seal, self._is_verified = read_seal(self.path, INDEX_FORMAT), False
        if self.path.stat().st_size <= VERIFIED_BYTES:
            self.verify_index()  # before the HDF5 library parses it
        self._index = MappedFile(self.path, INDEX_FORMAT, self._seal)
        self.splits: dict[str, Split] = {}
        self.teachers: dict[str, TeacherSettings] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.sources: dict[str, str] = {}
        self._splits_of: dict[str, list[str]] = {}
        with self._opened() as file:
            self.dataset = text_attribute(file, "dataset")
            self.image_root = image_root(self.path, file)
            for name, group in child_groups(child_group(file, "splits")).items():
                self.splits[name] = Split(name, self._index, group)
            for name, group in child_groups(child_group(file, "teachers")).items():
                self.teachers[name] = read_settings(self.path, group)
                self.sources[name] = text_attribute(group, "source")
                self.versions[name] = read_versions(group)
                self._splits_of[name] = list(child_groups(group))

    def verify_index(self) -> None:
        """Read every byte of the index and compare it with its checksum, a GB or two a second.

        Opening does so for an index of up to 256 MiB; what was verified once is not read again.

        Raises:
            StoreError: If the index is damaged.
        """
        if not self._is_verified and not seal_holds(self.path, INDEX_FORMAT):
            refuse_index(self.path)
        self._is_verified = True

    def __getitem__(self, names: tuple[str, str]) -> Embeddings:
        """The rows of a teacher for a split: ``store[teacher, split]``; see :meth:`embeddings`."""
        if not (isinstance(names, tuple) and len(names) == 2):
            raise TypeError("name a teacher and a split: store[teacher, split]")
        return self.embeddings(*names)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            "a store is no array; take a teacher's rows: np.asarray(store[teacher, split])"
        )

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(split):,} images" for name, split in self.splits.items())
        return (
            f"<EmbeddingStore {str(self.path)!r}: {splits}; teachers: {', '.join(self.teachers)}>"
        )

    def _opened(self) -> AbstractContextManager[h5py.File]:
        return open_sealed(self.path, INDEX_FORMAT, self._seal)

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            StoreError: If the store has no such split.
        """
        if name not in self.splits:
            message = f"{self.path} has no split {name!r}; it has: {', '.join(self.splits)}"
            raise StoreError(message, path=self.path, name=name)
        return self.splits[name]

    def pick_teacher(self, modality: str, name: str | None, flag: str) -> str:
        """The teacher of a modality by name, or the only one there is.

        Args:
            modality: ``"image"`` or ``"text"``.
            name: Its name, or ``None``.
            flag: The option that would name it, for error messages.

        Raises:
            StoreError: If there is none, the name is wrong, or several could be meant.
        """
        known = [n for n, s in self.teachers.items() if s.modality == modality]
        if not known:
            raise StoreError(
                f"{self.path} holds no {modality} teacher; add one: cusa-precompute --teacher NAME --out {self.path}",
                path=self.path,
                name=modality,
            )
        if name is None and len(known) == 1:
            return known[0]
        if name not in known:
            problem = (
                f"unknown {modality} teacher {name!r}" if name else f"several {modality} teachers"
            )
            message = f"{self.path}: {problem}; pass {flag} with one of: {', '.join(known)}"
            raise StoreError(message, path=self.path, name=name or modality)
        return name

    def skipped(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """int64 image rows and caption rows of a split that any teacher had to skip: unreadable, or empty."""
        rows: dict[str, list[np.ndarray]] = {
            "image": [np.zeros(0, np.int64)],
            "text": [np.zeros(0, np.int64)],
        }
        for teacher, settings in self.teachers.items():
            if split in self.splits_of(teacher):
                rows[settings.modality].append(self.embeddings(teacher, split).skipped)
        return np.unique(np.concatenate(rows["image"])), np.unique(np.concatenate(rows["text"]))

    def splits_of(self, teacher: str) -> list[str]:
        """Names of the splits that a teacher has rows for."""
        return list(self._splits_of[teacher])

    def embeddings(self, teacher: str, split: str) -> Embeddings:
        """The rows of a teacher for a split.

        Raises:
            StoreError: If teacher or split is not there, or a shard is missing.
        """
        if teacher not in self.teachers:
            message = f"{self.path} has no teacher {teacher!r}; it has: {', '.join(self.teachers)}"
            raise StoreError(message, path=self.path, name=teacher)
        table = self.split(split)
        if split not in self._splits_of[teacher]:
            raise StoreError(
                f"{self.path}: teacher {teacher!r} has no rows for split {split!r}; run cusa-precompute with "
                f"--splits {split}",
                path=self.path,
                name=teacher,
            )
        with self._opened() as file:
            part = child_group(child_group(child_group(file, "teachers"), teacher), split)
            return Embeddings(teacher, self.teachers[teacher], table, self._index, part)

"""Reading the store: captions, ids and memory-mapped teacher rows, with no HDF5 handle held."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import h5py
import numpy as np

from cusa.data.errors import CusaError
from cusa.data.index import image_root, read_settings, read_versions
from cusa.data.records import Truth
from cusa.data.schema import TeacherSettings
from cusa.data.sealed import INDEX_FORMAT, SHARD_FORMAT, open_sealed, read_seal


@dataclass(frozen=True)
class _Block:
    """A contiguous HDF5 dataset as what it is on disk: one plain array at an offset of a file."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @staticmethod
    def of(dataset: h5py.Dataset) -> _Block:
        offset = dataset.id.get_offset()
        if offset is None and dataset.size:
            raise CusaError(f"{dataset.file.filename}: {dataset.name} is not contiguous; see docs/FORMAT.md")
        return _Block(dataset.file.filename, offset or 0, dataset.shape, dataset.dtype.str)

    def map(self, reads_ahead: bool = True) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        try:
            found = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
            if not reads_ahead and isinstance(found.base, mmap.mmap):
                found.base.madvise(mmap.MADV_RANDOM)
            return found
        except ValueError:
            raise CusaError(f"{self.path} is truncated; run the cusa-precompute command again") from None


class _Mapped:
    """Base of the readers: mapped on first use, sent to other processes without the maps."""

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if not isinstance(v, (np.memmap, _Window))}


class Strings(_Mapped, Sequence[str]):
    """A column of texts; opening it costs the same for any number of rows."""

    def __init__(self, group: h5py.Group) -> None:
        self._blocks = _Block.of(group["bytes"]), _Block.of(group["offsets"])

    @cached_property
    def _bytes(self) -> np.ndarray:
        return self._blocks[0].map()

    @cached_property
    def _offsets(self) -> np.ndarray:
        return self._blocks[1].map()

    def __len__(self) -> int:
        return self._blocks[1].shape[0] - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """The text of a row, or of a range of rows."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # IndexError and negative rows as a list has them
        return self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes().decode()


class Split(_Mapped):
    """One split: ids, paths and captions by row.

    Attributes:
        name: Split name.
        fingerprint: sha256 (hex) over ids, paths and captions.
        image_ids: Image ids, one per image row.
        image_paths: Image paths relative to the store's image root.
        caption_ids: Caption ids, one per caption row.
        captions: Captions as written.
        truth: Relevance beyond the labels, or ``None``.
    """

    def __init__(self, name: str, group: h5py.Group) -> None:
        self.name = name
        self.fingerprint = str(group.attrs["fingerprint"])
        self.image_ids, self.image_paths = Strings(group["image_ids"]), Strings(group["image_paths"])
        self.caption_ids, self.captions = Strings(group["caption_ids"]), Strings(group["captions"])
        self._caption_image = _Block.of(group["caption_image"])
        self._truth = {k: _Block.of(v) for k, v in group["truth"].items()} if "truth" in group else None

    @property
    def n_images(self) -> int:
        """Number of image rows."""
        return len(self.image_ids)

    @property
    def n_captions(self) -> int:
        """Number of caption rows."""
        return len(self.captions)

    @cached_property
    def caption_image(self) -> np.ndarray:
        """int64 ``[n_captions]``: the image row of each caption."""
        return self._caption_image.map()

    @property
    def truth(self) -> Truth | None:
        """Known relevance, or ``None``."""
        return Truth(**{k: block.map() for k, block in self._truth.items()}) if self._truth else None


class Embeddings(_Mapped):
    """The rows of one teacher for one split: ``[n_rows, dim]``, gathered by row number.

    Opening it costs the same for any number of rows; each shard is checked and mapped when a row of it is first asked
    for, or by :meth:`require_shards`.

    Attributes:
        teacher: The teacher's name in the store.
        settings: Its settings.
        shape: ``(n_rows, dim)``.
    """

    def __init__(self, teacher: str, settings: TeacherSettings, split: Split, index: Path, group: h5py.Group) -> None:
        self.teacher, self.settings = teacher, settings
        listing = group["shards"]
        bounds = listing["bounds"][...]
        n_rows = split.n_images if settings.modality == "image" else split.n_captions
        starts, stops = np.append(bounds[:, 0], n_rows), np.append(0, bounds[:, 1])
        if (starts != stops).any():
            row = int(np.minimum(starts, stops)[starts != stops][0])
            raise CusaError(
                f"{index}: the shards of teacher {teacher!r} do not hold all {n_rows} rows of split {split.name!r} "
                f"(row {row} on); join parts with cusa-store merge, or run the cusa-precompute command to the end"
            )
        self._bounds, self._offsets = starts, listing["offsets"][...]
        self._files, self._seals = Strings(listing["files"]), Strings(listing["sha256"])
        self._folder = index.parent
        self._skipped = _Block.of(group["skipped"])
        self.shape = (n_rows, settings.dim)

    @cached_property
    def skipped(self) -> np.ndarray:
        """int64, ascending: the rows without an embedding (they hold NaN)."""
        return self._skipped.map()

    @cached_property
    def _window(self) -> _Window:
        return _Window(self._bounds, self.shape[1], self.dtype, self._map)

    @cached_property
    def _exceeds_memory(self) -> bool:
        """Whether the rows cannot all stay in memory; reading ahead of random rows then only drives others out."""
        return len(self) * self.shape[1] * self.dtype.itemsize > os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE / 2

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
        return self._folder / self._files[number]

    def require_shards(self) -> None:
        """Check that every shard is there and is the one that the index names: reads 512 bytes of each.

        Raises:
            CusaError: If one is missing or another; names it.
        """
        for number in range(self.n_shards):
            self._check(number)

    def gather(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows by number, in the order asked for.

        Args:
            rows: int ``[n]``, each in ``[0, n_rows)``.

        Returns:
            ``[n, dim]`` in the stored dtype, L2-normalised if ``settings.normalized``; NaN for skipped rows.

        Raises:
            IndexError: If a row is out of range, or no integer.
            CusaError: If a shard is missing or truncated, or is not the one that the index was written for.
        """
        return self._window.gather(np.asarray(rows))

    def _check(self, number: int) -> Path:
        path, seal = self.shard_path(number), self._seals[number]
        # HDF5 would read a missing shard as fill values without a word.
        if (found := read_seal(path, SHARD_FORMAT)) != seal:
            raise CusaError(
                f"{path} is not the shard that the index names (its checksum is {found[:12]}, expected {seal[:12]}); "
                "move it away and run the cusa-precompute command again"
            )
        return path

    def _map(self, number: int) -> np.ndarray:
        if self._offsets[number] % self.dtype.itemsize:
            raise CusaError(f"{self.shard_path(number)}: its rows begin at an odd place; see docs/FORMAT.md")
        n_rows = int(self._bounds[number + 1] - self._bounds[number])
        block = _Block(str(self._check(number)), int(self._offsets[number]), (n_rows, self.shape[1]), self.dtype.str)
        return block.map(reads_ahead=not self._exceeds_memory)


class _Window:
    """One array over the shards' maps, wherever they lie in memory, so that one indexing gathers rows of all of them.

    Element i of the array is the row that would begin i elements after the lowest map; only indices that fall on rows
    are ever used. A loop over the shards that a batch of 128 rows touches takes seven times as long.

    Args:
        bounds: int64 ``[n_shards + 1]``: first row of each shard, then the number of rows.
        dim: Columns.
        dtype: Of the rows.
        load: Maps a shard by number: ``[rows of the shard, dim]``, C-contiguous.
    """

    _UNMAPPED = 1 << 62  # far outside of the array: numpy's own check of indices finds it

    __slots__ = ("_bounds", "_dtype", "_fast", "_length", "_load", "_lock", "_maps")

    def __init__(self, bounds: np.ndarray, dim: int, dtype: np.dtype, load: Callable[[int], np.ndarray]) -> None:
        self._bounds, self._dtype, self._load, self._lock = bounds, dtype, load, threading.Lock()
        lengths = np.diff(bounds)
        # Dividing is faster than searching, and all shards but the last are of one length unless somebody made them so.
        self._length = int(lengths[0]) if (lengths[:-1] == lengths[0]).all() and lengths[-1] <= lengths[0] else None
        self._maps: dict[int, np.ndarray] = {}  # keeps the memory mapped
        origins = np.full(len(lengths), self._UNMAPPED, np.int64)  # where row 0 would be, if a shard began there
        view = np.empty((0, 1), np.dtype((np.void, dim * dtype.itemsize)))
        # What gathering needs, in one place: the rows that it copies drive all else out of the processor's cache, and
        # looking names up would take a tenth of the time. Numbers are arrays already.
        self._fast = int(bounds[-1]), np.array(self._length or 1), np.array(dim), origins, view, dtype

    def gather(self, rows: np.ndarray) -> np.ndarray:
        n_rows, length, dim, origins, view, dtype = self._fast
        if rows.dtype != np.int64:
            rows = _row_numbers(rows)
        if not len(rows):
            return np.empty((0, int(dim)), dtype)
        if np.maximum.reduce(rows.view(np.uint64)) >= n_rows:  # negative ones are huge there
            raise IndexError(f"rows must lie in [0, {n_rows}); got {rows.min()} to {rows.max()}")
        shards = rows // length if self._length else self._bounds.searchsorted(rows, "right") - 1
        places = origins.take(shards)
        places += rows * dim
        try:
            return view[places].view(dtype)
        except IndexError:
            self._extend(np.unique(shards[origins[shards] == self._UNMAPPED]).tolist())
            return self.gather(rows)

    def _extend(self, shards: list[int]) -> None:
        """Map more shards and lay the array over all that are mapped; other threads may be gathering."""
        with self._lock:
            for number in shards:
                if number not in self._maps:
                    self._maps[number] = self._load(number)
            self._fast = self._laid_out()

    def _laid_out(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.dtype]:
        n_rows, length, dim, origins, view, dtype = self._fast
        origins = origins.copy()  # origins and array belong together: a reader has the old ones, or the new ones
        numbers = np.fromiter(self._maps, np.int64)
        addresses = np.fromiter((m.ctypes.data for m in self._maps.values()), np.int64)
        low, size = int(addresses.min()), dtype.itemsize
        origins[numbers] = (addresses - low) // size - self._bounds[numbers] * dim
        end = max(a + m.nbytes for a, m in zip(addresses.tolist(), self._maps.values(), strict=True))
        interface = {
            "version": 3,
            "data": (low, True),
            "shape": ((end - low - view.itemsize) // size + 1, 1),  # up to the last row of the highest map
            "strides": (size, view.itemsize),
            "typestr": view.dtype.str,
        }
        view = np.asarray(type("Memory", (), {"__array_interface__": interface})())
        return n_rows, length, dim, origins, view, dtype


def _row_numbers(rows: np.ndarray) -> np.ndarray:
    """int64, of integers of another kind."""
    if len(rows) and rows.dtype.kind not in "iu":
        raise IndexError(f"rows must be integers; got {rows.dtype}")
    return rows.astype(np.int64)


class EmbeddingStore:
    """An embedding store, opened for reading.

    Opening reads a few attributes; rows are mapped on first use. Instances may be sent to other processes.

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
        CusaError: If the file is missing, truncated, of a newer format, or no embedding store.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise CusaError(f"embedding store {path} does not exist; make it with cusa-precompute --out {path}")
        with open_sealed(self.path, INDEX_FORMAT) as file:
            self.dataset = str(file.attrs["dataset"])
            self.image_root = image_root(self.path, file)
            self.splits = {name: Split(name, group) for name, group in list(file["splits"].items())}
            self.teachers: dict[str, TeacherSettings] = {}
            self.versions: dict[str, dict[str, str]] = {}
            self.sources: dict[str, str] = {}
            for name, group in list(file["teachers"].items()):
                self.teachers[name] = read_settings(group)
                self.sources[name] = str(group.attrs["source"])
                self.versions[name] = read_versions(group)

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            CusaError: If the store has no such split.
        """
        if name not in self.splits:
            raise CusaError(f"{self.path} has no split {name!r}; it has: {', '.join(self.splits)}")
        return self.splits[name]

    def pick_teacher(self, modality: str, name: str | None, flag: str) -> str:
        """The teacher of a modality by name, or the only one there is.

        Args:
            modality: ``"image"`` or ``"text"``.
            name: Its name, or ``None``.
            flag: The option that would name it, for error messages.

        Raises:
            CusaError: If there is none, the name is wrong, or several could be meant.
        """
        known = [n for n, s in self.teachers.items() if s.modality == modality]
        if not known:
            raise CusaError(
                f"{self.path} holds no {modality} teacher; add one: cusa-precompute --teacher NAME --out {self.path}"
            )
        if name is None and len(known) == 1:
            return known[0]
        if name not in known:
            problem = f"unknown {modality} teacher {name!r}" if name else f"several {modality} teachers"
            raise CusaError(f"{self.path}: {problem}; pass {flag} with one of: {', '.join(known)}")
        return name

    def skipped(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """int64 image rows and caption rows of a split that any teacher had to skip: unreadable, or empty."""
        rows: dict[str, list[np.ndarray]] = {"image": [np.zeros(0, np.int64)], "text": [np.zeros(0, np.int64)]}
        for teacher, settings in self.teachers.items():
            if split in self.splits_of(teacher):
                rows[settings.modality].append(self.embeddings(teacher, split).skipped)
        return np.unique(np.concatenate(rows["image"])), np.unique(np.concatenate(rows["text"]))

    def splits_of(self, teacher: str) -> list[str]:
        """Names of the splits that a teacher has rows for."""
        with open_sealed(self.path, INDEX_FORMAT) as file:
            return list(file["teachers"][teacher])

    def embeddings(self, teacher: str, split: str) -> Embeddings:
        """The rows of a teacher for a split.

        Raises:
            CusaError: If teacher or split is not there, or a shard is missing.
        """
        if teacher not in self.teachers:
            raise CusaError(f"{self.path} has no teacher {teacher!r}; it has: {', '.join(self.teachers)}")
        self.split(split)
        with open_sealed(self.path, INDEX_FORMAT) as file:
            group = file["teachers"][teacher]
            if split not in group:
                raise CusaError(
                    f"{self.path}: teacher {teacher!r} has no rows for split {split!r}; run cusa-precompute with "
                    f"--splits {split}"
                )
            return Embeddings(teacher, self.teachers[teacher], self.splits[split], self.path, group[split])

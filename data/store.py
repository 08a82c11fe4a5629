"""Reading the store: captions, ids and memory-mapped teacher rows, with no HDF5 handle held."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import h5py
import numpy as np

from cusa.data import schema
from cusa.data.errors import CusaError
from cusa.data.records import Truth
from cusa.data.schema import TeacherSettings


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

    def map(self) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except ValueError:
            raise CusaError(f"{self.path} is truncated; run cusa-precompute again") from None


class _Mapped:
    """Base of the readers: mapped on first use, sent to other processes without the maps."""

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if not isinstance(v, (np.memmap, _Maps))}


class _Maps(dict[int, np.ndarray]):
    """Shard maps by shard number, filled as shards are touched."""


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

    Attributes:
        teacher: The teacher's name in the store.
        settings: Its settings.
        shape: ``(n_rows, dim)``.
        skipped: int64, the rows without an embedding (they hold NaN).
    """

    def __init__(self, teacher: str, settings: TeacherSettings, split: Split, index: Path, group: h5py.Group) -> None:
        self.teacher, self.settings = teacher, settings
        bounds = group["shards/bounds"][...]
        n_rows = split.n_images if settings.modality == "image" else split.n_captions
        if bounds[0, 0] != 0 or bounds[-1, 1] != n_rows or (bounds[1:, 0] != bounds[:-1, 1]).any():
            raise CusaError(
                f"{index}: the shards of teacher {teacher!r} do not hold the {n_rows} rows of split {split.name!r}; "
                "remove the index and run the same cusa-precompute command again"
            )
        self._identity = (teacher, split.name, split.fingerprint)
        self._starts = bounds[:, 0]
        self._stops = bounds[:, 1]
        self._sha256 = schema.read_strings(group["shards"], "sha256")
        self._paths = [index.parent / f for f in schema.read_strings(group["shards"], "files")]
        self._maps = _Maps()
        self.shape = (int(bounds[-1, 1]), settings.dim)
        self.skipped = group["skipped"][...]
        # HDF5 would read a missing shard as fill values without a word.
        if missing := [p for p in self._paths if not os.path.exists(p)]:
            raise CusaError(
                f"{index}: shard {missing[0]} is missing ({len(missing)} of {len(self._paths)}); run the "
                "cusa-precompute command again to make it"
            )

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _maps=_Maps())

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def n_shards(self) -> int:
        """Number of shard files."""
        return len(self._paths)

    @property
    def dtype(self) -> np.dtype:
        """float16 or float32."""
        return np.dtype(self.settings.dtype)

    def gather(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows by number, in the order asked for.

        Args:
            rows: int ``[n]``, each in ``[0, n_rows)``.

        Returns:
            ``[n, dim]`` in the stored dtype, L2-normalised if ``settings.normalized``; NaN for skipped rows.

        Raises:
            IndexError: If a row is out of range.
            CusaError: If a shard is truncated, or is not the one that the index was written for.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"rows must lie in [0, {self.shape[0]}); got {rows.min()} to {rows.max()}")
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard).tolist():
            here = shard == number
            out[here] = self._map(number)[rows[here] - self._starts[number]]
        return out

    def _map(self, number: int) -> np.ndarray:
        found = self._maps.get(number)
        if found is None:
            path = self._paths[number]
            with schema.open_checked(path, schema.SHARD_FORMAT) as file:
                expected = (int(self._stops[number] - self._starts[number]), self.shape[1])
                attrs = file.attrs
                for name, have, want in (
                    ("content", tuple(attrs[k] for k in ("teacher", "split", "split_fingerprint")), self._identity),
                    ("start", int(attrs["start"]), int(self._starts[number])),
                    ("sha256", attrs["sha256"], self._sha256[number]),
                    ("shape", file["rows"].shape, expected),
                    ("dtype", file["rows"].dtype, self.dtype),
                ):
                    if have != want:
                        raise CusaError(
                            f"{path} is not the shard that the index names ({name} is {have}, expected {want}); "
                            "remove it and run the cusa-precompute command again"
                        )
                block = _Block.of(file["rows"])
            # A plain view: numpy's memmap class costs a Python call per indexing.
            found = self._maps[number] = np.asarray(block.map())
        return found


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
        with schema.open_checked(self.path, schema.INDEX_FORMAT) as file:
            self.dataset = str(file.attrs["dataset"])
            root = str(file.attrs["image_root"])
            self.image_root = self.path.resolve().parent / root
            self.splits = {name: Split(name, group) for name, group in file["splits"].items()}
            self.teachers: dict[str, TeacherSettings] = {}
            self.versions: dict[str, dict[str, str]] = {}
            self.sources: dict[str, str] = {}
            for name, group in file["teachers"].items():
                self.teachers[name] = TeacherSettings.from_json(group.attrs["settings"])
                self.sources[name] = str(group.attrs["source"])
                self.versions[name] = {
                    k.removeprefix("version."): str(v) for k, v in group.attrs.items() if k.startswith("version.")
                }

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
        with schema.open_checked(self.path, schema.INDEX_FORMAT) as file:
            return list(file["teachers"][teacher])

    def embeddings(self, teacher: str, split: str) -> Embeddings:
        """The rows of a teacher for a split.

        Raises:
            CusaError: If teacher or split is not there, or a shard is missing.
        """
        if teacher not in self.teachers:
            raise CusaError(f"{self.path} has no teacher {teacher!r}; it has: {', '.join(self.teachers)}")
        self.split(split)
        with schema.open_checked(self.path, schema.INDEX_FORMAT) as file:
            group = file["teachers"][teacher]
            if split not in group:
                raise CusaError(
                    f"{self.path}: teacher {teacher!r} has no rows for split {split!r}; run cusa-precompute with "
                    f"--splits {split}"
                )
            return Embeddings(teacher, self.teachers[teacher], self.splits[split], self.path, group[split])

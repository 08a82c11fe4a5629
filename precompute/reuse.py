"""Reuse of another store's rows, matched by a picture's bytes or a caption's text."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError, SettingError
from cusa.data.files import file_digest
from cusa.data.records import Dataset
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import TeacherSettings
from cusa.data.store.shards import DIGEST_BYTES
from cusa.precompute.processes import RunProcesses
from cusa.precompute.shard_plan import ShardTask

_READING_THREADS = 8


@dataclass(frozen=True)
class ReusedRows:
    """Rows of a shard that another store has.

    Attributes:
        rows: int64 ``[m]``, ascending: the split's rows that need not be made.
        picture_digests: uint8 ``[m, 32]``, sha256 of their image files; ``None`` for captions.
        read: Reads the rows: ``[m, dim]`` in the stored dtype.
    """

    rows: np.ndarray
    picture_digests: np.ndarray | None
    read: Callable[[], np.ndarray]


class RowReuse:
    """Looks up the rows of shards in another store.

    Pictures are matched by the sha256 of their files, which stores record since format 2.1, and
    captions by their normalised text. Skipped rows are never reused.

    Args:
        dataset: The data set of this run.
        settings: The teacher's settings; only rows that were made with equal settings are reused.
        store: The store to take rows from.

    Raises:
        StoreError: If a shard is missing, or not the one that the index names.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: TeacherSettings,
        store: EmbeddingStore,
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._sources = list(equal_rows(store, settings))

        # The rows of all sources are numbered consecutively: there may be millions, and a number
        # takes less memory than a pair of source and row.
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self._number_of_key: dict[bytes, int] = {}
        for start, source in zip(self._starts.tolist(), self._sources, strict=False):
            if settings.modality == "text":
                captions = store.split(source.split).captions
                keys = _caption_keys(captions, settings.normalizer)
            else:
                keys = map(np.ndarray.tobytes, source.picture_digests())
            skipped = frozenset(source.skipped.tolist())
            for row, key in enumerate(keys):
                # A digest of zeros means that the picture was not recorded.
                if any(key) and row not in skipped:
                    self._number_of_key.setdefault(key, start + row)

    def __len__(self) -> int:
        return len(self._number_of_key)

    def __call__(self, task: ShardTask) -> ReusedRows:
        """Return the rows of a shard that the other store has."""
        keys = self._keys(task)
        is_reused = [key in self._number_of_key for key in keys]
        reused_keys = list(compress(keys, is_reused))
        numbers = np.asarray([self._number_of_key[key] for key in reused_keys], np.int64)
        digests = None
        if self._settings.modality == "image":
            # A picture's key is its digest.
            digests = np.frombuffer(b"".join(reused_keys), np.uint8).reshape(-1, DIGEST_BYTES)
        rows = task.start + np.flatnonzero(is_reused)
        return ReusedRows(rows, digests, lambda: self._gather(numbers))

    def _gather(self, numbers: np.ndarray) -> np.ndarray:
        """Read rows by number among all sources: ``[n, dim]`` in the stored dtype."""
        dtype = np.dtype(self._settings.dtype).newbyteorder("<")
        rows = np.empty((len(numbers), self._settings.dim), dtype)
        source_numbers = np.searchsorted(self._starts, numbers, "right") - 1
        for source_number, source in enumerate(self._sources):
            is_of_source = source_numbers == source_number
            source_rows = numbers[is_of_source] - self._starts[source_number]
            rows[is_of_source] = source.gather(source_rows)
        return rows

    def _keys(self, task: ShardTask) -> list[bytes]:
        """Return the key of each row of a shard; empty if its item cannot be read."""
        records = self._dataset.splits[task.split]
        if self._settings.modality == "image":
            image_paths = records.image_paths[task.start : task.stop]
            paths = list(map(self._dataset.image_root.joinpath, image_paths))
            with ThreadPoolExecutor(_READING_THREADS) as threads:
                return list(threads.map(_picture_key, paths))

        captions = records.captions[task.start : task.stop]
        return list(_caption_keys(captions, self._settings.normalizer))


class StoreReuse:
    """Another store whose rows the processes of a run reuse.

    Args:
        path: The other store's index.
        out: The index that the run writes.
        dataset: The data set of the run.
        processes: The processes.

    Raises:
        SettingError: If it is the store that the run writes.
        StoreError: If it cannot be read.
    """

    def __init__(
        self,
        path: Path,
        out: Path,
        dataset: Dataset,
        processes: RunProcesses,
    ) -> None:
        self._store = EmbeddingStore(path)
        self._dataset = dataset
        self._processes = processes
        self._store.verify_index()
        if out.exists() and out.samefile(path):
            message = f"--reuse {path} is the store that the run writes; pass another --out"
            raise SettingError(message, path=path, name="reuse")

    def rows_of(
        self,
        teacher_name: str,
        settings: TeacherSettings,
        check_stop: Callable[[], None],
    ) -> Callable[[ShardTask], ReusedRows] | None:
        """Return a lookup of reusable rows by shard; ``None`` if the store has none.

        Args:
            teacher_name: The teacher's name in this run.
            settings: The teacher's settings.
            check_stop: Called while waiting; raises to stop.

        Raises:
            StoreError: If a shard of the store is damaged, as its rows would get a new seal.
        """

        def verify() -> None:
            for embeddings in equal_rows(self._store, settings):
                embeddings.verify_shards()

        # One process verifies the shards, instead of each of them.
        self._processes.agree(f"verified-{teacher_name}", verify, check_stop)
        look_up = RowReuse(self._dataset, settings, self._store)
        if not len(look_up):
            return None

        def look_up_and_count(task: ShardTask) -> ReusedRows:
            reused = look_up(task)
            self._processes.add(_counter(teacher_name), len(reused.rows))
            return reused

        return look_up_and_count

    def note(
        self,
        teacher_name: str,
        settings: TeacherSettings,
        n_rows: int,
    ) -> str:
        """Describe how many rows of a teacher all processes reused, or why they reused none.

        Args:
            teacher_name: The teacher's name in this run.
            settings: The teacher's settings.
            n_rows: Number of its rows that were not finished before this run.
        """
        n_reused = self._n_reused(teacher_name)
        note = (
            f"{teacher_name}: {n_reused:,} of {n_rows:,} rows were taken over from "
            f"{self._store.path}"
        )
        return note if n_reused else f"{note} ({self._why_none(settings)})"

    def versions(
        self,
        teacher_name: str,
        settings: TeacherSettings,
    ) -> Mapping[str, str] | None:
        """Return the library versions that reused rows were made with; ``None`` if there are none.

        Args:
            teacher_name: The teacher's name in this run.
            settings: The teacher's settings.
        """
        if not self._n_reused(teacher_name):
            return None
        equal_teachers = _equal_teachers(self._store, settings)
        return self._store.versions[equal_teachers[0]]

    def _n_reused(self, teacher_name: str) -> int:
        return self._processes.add(_counter(teacher_name), 0)

    def _why_none(self, settings: TeacherSettings) -> str:
        differences: list[list[str]] = []
        for stored in self._store.teachers.values():
            if stored.modality == settings.modality:
                differences.append(stored.differences(settings))
        if not differences:
            return f"it has no {settings.modality} teacher"
        fewest = min(differences, key=len)
        if fewest:
            return f"its settings differ: {'; '.join(fewest)}"
        if settings.modality == "text":
            return "none of its captions are the same"
        for embeddings in equal_rows(self._store, settings):
            if embeddings.picture_digests().any():
                return "none of its pictures are the same"
        return "it was made before stores recorded which pictures their rows are of"


def _counter(teacher_name: str) -> str:
    """Return the name of the counter of a teacher's reused rows."""
    return f"reused-{teacher_name}"


def equal_rows(store: EmbeddingStore, settings: TeacherSettings) -> Iterator[Embeddings]:
    """Yield a store's rows by teacher and split, for teachers with equal settings.

    Raises:
        StoreError: If rows are missing.
    """
    for teacher_name in _equal_teachers(store, settings):
        for split in store.splits_of(teacher_name):
            yield store.embeddings(teacher_name, split)


def _equal_teachers(store: EmbeddingStore, settings: TeacherSettings) -> list[str]:
    stored_settings = store.teachers.items()
    return [name for name, stored in stored_settings if not stored.differences(settings)]


def _picture_key(path: Path) -> bytes:
    """Return the sha256 of a picture's file."""
    with contextlib.suppress(OSError):
        return file_digest(path)
    # Decoding the picture will report what is wrong with it.
    return b""


def _caption_keys(captions: Iterable[str], normalizer_name: str) -> Iterator[bytes]:
    """Yield the sha256 of each normalised caption; empty if it cannot be normalised."""
    normalize = normalizer(normalizer_name)
    for caption in captions:
        try:
            yield hashlib.sha256(normalize(caption).encode()).digest()
        except CusaError:
            yield b""

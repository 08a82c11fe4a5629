"""Rows that another store holds, found by what they are of: a picture's bytes, a caption's text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError, SettingError
from cusa.data.files import file_digest
from cusa.data.records import Dataset, caption_rows
from cusa.data.store.reader import Embeddings, EmbeddingStore
from cusa.data.store.schema import TeacherSettings
from cusa.data.store.shards import DIGEST_BYTES
from cusa.precompute.processes import Ranks
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import DRAFT, Teacher

_READING_THREADS = 8


@dataclass(frozen=True)
class ReusedRows:
    """Rows of a shard that another store holds.

    Attributes:
        rows: int64 ``[m]``, ascending: the split's rows that need not be made.
        picture_digests: uint8 ``[m, 32]``, sha256 of their picture files; ``None`` for captions.
        read: Reads them: ``[m, dim]`` as they are stored.
    """

    rows: np.ndarray
    picture_digests: np.ndarray | None
    read: Callable[[], np.ndarray]


class RowReuse:
    """Looks up the rows of shards in another store.

    Args:
        dataset: The data set of this run.
        settings: The teacher's settings.
        sources: The rows of teachers with the same settings, by split.
        keys: What each row of the sources is of, or ``None`` for rows not to be taken.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: TeacherSettings,
        sources: Sequence[Embeddings],
        keys: Sequence[Iterable[bytes | None]],
    ) -> None:
        self._dataset, self._settings, self._sources = dataset, settings, sources
        self._first_captions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        # The sources' rows are numbered through: a number is less than a pair, and there are
        # millions.
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        self._places: dict[bytes, int] = {}
        for start, of_source in zip(self._starts.tolist(), keys, strict=False):
            for place, key in enumerate(of_source, start):
                if key is not None:
                    self._places.setdefault(key, place)

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, task: ShardTask) -> ReusedRows:
        """The rows of a shard that need not be made."""
        held = [
            (row, key)
            for row, key in enumerate(self._keys(task), task.start)
            if key in self._places
        ]
        rows = np.asarray([row for row, _ in held], np.int64)
        keys = [key for _, key in held if key is not None]
        places = np.asarray([self._places[key] for key in keys], np.int64)
        digests = None
        if self._settings.modality == "image":
            digests = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), DIGEST_BYTES)
        return ReusedRows(rows, digests, lambda: self._gathered(places))

    def _gathered(self, places: np.ndarray) -> np.ndarray:
        """The rows at some places of all sources."""
        dtype = np.dtype(self._settings.dtype).newbyteorder("<")
        values = np.empty((len(places), self._settings.dim), dtype)
        numbers = np.searchsorted(self._starts, places, "right") - 1
        for number, source in enumerate(self._sources):
            is_there = numbers == number
            values[is_there] = source.gather(places[is_there] - self._starts[number])
        return values

    def _keys(self, task: ShardTask) -> list[bytes | None]:
        """What each row of a shard is of; ``None`` where that cannot be read."""
        records = self._dataset.splits[task.split]
        if self._settings.modality == "image":
            paths = [
                self._dataset.image_root / record.image_path
                for record in records[task.start : task.stop]
            ]
            with ThreadPoolExecutor(_READING_THREADS) as threads:
                return list(threads.map(_picture_key, paths))
        if task.split not in self._first_captions:
            images = caption_rows(records)
            self._first_captions[task.split] = images, np.searchsorted(images, images)
        images, firsts = self._first_captions[task.split]
        rows = range(task.start, task.stop)
        captions = [records[images[row]].captions[row - int(firsts[row])] for row in rows]
        return list(_caption_keys(captions, self._settings.normalizer))


class StoreReuse:
    """Another store in a run: what every process of it takes over.

    Args:
        path: The store's index.
        out: The index that the run writes.
        dataset: The data set of the run.
        ranks: The processes.

    Raises:
        SettingError: If the store is the one that is written.
        StoreError: If it cannot be read.
    """

    def __init__(self, path: Path, out: Path, dataset: Dataset, ranks: Ranks) -> None:
        self._store, self._dataset, self._ranks = EmbeddingStore(path), dataset, ranks
        self._store.verify_index()
        if out.exists() and out.samefile(path):
            message = f"--reuse {path} is the store that is written; pass another --out"
            raise SettingError(message, path=path, name="reuse")

    def settings_like(
        self, teacher: Teacher, settings_of: Callable[[Teacher], TeacherSettings]
    ) -> TeacherSettings | None:
        """The settings of a teacher of the store that differ in the halving of JPEGs at most.

        Args:
            teacher: The teacher of this run.
            settings_of: Its settings in this run.
        """
        for stored in self._store.teachers.values():
            draft_size = stored.transform.get(DRAFT)
            if not stored.differences(settings_of(replace(teacher, draft_size=draft_size))):
                return stored
        return None

    def rows_of(
        self, teacher: str, settings: TeacherSettings, check_stop: Callable[[], None]
    ) -> Callable[[ShardTask], ReusedRows] | None:
        """Look-up of the rows of a teacher's shards, ``None`` if there is nothing to take.

        Args:
            teacher: The teacher's name in this run.
            settings: Its settings.
            check_stop: Called while waiting; raises to stop.

        Raises:
            StoreError: If a shard of the store is damaged: its rows would be sealed anew.
        """
        if self._ranks.leads:
            for rows in self._sources(settings):
                rows.verify_shards()
            self._ranks.tell(f"verified-{teacher}", True)
        self._ranks.hear(f"verified-{teacher}", check_stop)
        look_up = find_reusable(self._store, settings, self._dataset)
        if look_up is None:
            return None

        def counted(task: ShardTask) -> ReusedRows:
            reused = look_up(task)
            self._ranks.add(f"reused-{teacher}", len(reused.rows))
            return reused

        return counted

    def notes(
        self, settings: Mapping[str, TeacherSettings], made: Sequence[ShardTask]
    ) -> Iterator[str]:
        """How many rows of each teacher all processes took over, and why there was none.

        Args:
            settings: By teacher name.
            made: The shards that this run made.
        """
        for teacher, of_teacher in settings.items():
            n_rows = sum(task.n_rows for task in made if task.teacher == teacher)
            if n_rows:
                n_reused = self._ranks.add(f"reused-{teacher}", 0)
                reason = "" if n_reused else f" ({self._why_none(of_teacher)})"
                path = self._store.path
                yield f"{teacher}: {n_reused:,} of {n_rows:,} rows were taken over from {path}{reason}"

    def versions(self, teacher: str, settings: TeacherSettings) -> Mapping[str, str] | None:
        """The library versions that rows taken over were made with, ``None`` if there are none.

        Args:
            teacher: The teacher's name in this run.
            settings: Its settings.
        """
        if self._ranks.add(f"reused-{teacher}", 0):
            for name, stored in self._store.teachers.items():
                if not stored.differences(settings):
                    return self._store.versions[name]
        return None

    def _sources(self, settings: TeacherSettings) -> Iterator[Embeddings]:
        return equal_rows(self._store, settings)

    def _why_none(self, settings: TeacherSettings) -> str:
        stored = [
            other for other in self._store.teachers.values() if other.modality == settings.modality
        ]
        if not stored:
            return f"it has no {settings.modality} teacher"
        closest = min(stored, key=lambda other: len(other.differences(settings)))
        if differing := closest.differences(settings):
            return f"its settings differ: {'; '.join(differing)}"
        if settings.modality == "text":
            return "its captions are others"
        if any(rows.picture_digests().any() for rows in self._sources(settings)):
            return "its pictures are others"
        return "it was made before stores recorded which pictures their rows are of"


def equal_rows(store: EmbeddingStore, settings: TeacherSettings) -> Iterator[Embeddings]:
    """The rows of a store that were made with these settings, of every teacher and split.

    Raises:
        StoreError: If rows are missing.
    """
    for teacher, stored in store.teachers.items():
        if not stored.differences(settings):
            for split in store.splits_of(teacher):
                yield store.embeddings(teacher, split)


def find_reusable(
    store: EmbeddingStore, settings: TeacherSettings, dataset: Dataset
) -> RowReuse | None:
    """Find the rows of a store that were made with these settings, ``None`` if there are none.

    Pictures are known by the sha256 of their files, which stores record since format 2.1; captions
    by their text as the teacher takes it. Rows that were skipped are not taken.

    Args:
        store: The store to take rows from.
        settings: The teacher's settings.
        dataset: The data set of this run.

    Raises:
        StoreError: If a shard is missing or another one than the index names.
    """
    sources = list(equal_rows(store, settings))
    keys: list[Iterator[bytes | None]] = []
    for rows in sources:
        if settings.modality == "text":
            of_source = _caption_keys(store.split(rows.split).captions, settings.normalizer)
        else:
            of_source = _recorded_keys(rows.picture_digests())
        keys.append(_without_skipped(of_source, rows))
    reuse = RowReuse(dataset, settings, sources, keys)
    return reuse if len(reuse) else None


def _without_skipped(keys: Iterator[bytes | None], rows: Embeddings) -> Iterator[bytes | None]:
    skipped = frozenset(rows.skipped.tolist())
    for row, key in enumerate(keys):
        yield None if row in skipped else key


def _recorded_keys(digests: np.ndarray) -> Iterator[bytes | None]:
    """Keys of pictures as a store has them; of zeros where it has none."""
    for digest in digests:
        raw = digest.tobytes()
        yield raw if any(raw) else None


def _picture_key(path: Path) -> bytes | None:
    try:
        return file_digest(path)
    except OSError:
        return None  # what is wrong with it is said when it is decoded


def _caption_keys(captions: Iterable[str], normalizer_name: str) -> Iterator[bytes | None]:
    normalize = normalizer(normalizer_name)
    for caption in captions:
        try:
            yield hashlib.sha256(normalize(caption).encode()).digest()
        except CusaError:
            yield None

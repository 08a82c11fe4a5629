"""A run of stage one: plan, lock, load the teachers, hand out the shards, write the index."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from cusa.data.errors import DataError, SettingError, TeacherError
from cusa.data.files import FolderLock, sweep
from cusa.data.records import Dataset
from cusa.data.store.index import Index, TeacherEntry, read_index, write_index
from cusa.data.store.schema import TeacherSettings, shard_folder
from cusa.data.store.shards import ShardHeader, ShardInfo
from cusa.precompute.estimate import Rates, choose_draft, measure
from cusa.precompute.input_check import check_inputs
from cusa.precompute.pictures import is_older, older_rows, refuse_changed_pictures
from cusa.precompute.pipeline import PipelineOptions, encode_shards
from cusa.precompute.processes import Ranks, announced_failure
from cusa.precompute.reuse import StoreReuse
from cusa.precompute.shard_plan import ShardTask, finished_shards, plan_teacher, stored_settings
from cusa.precompute.teachers import TeacherRequest
from cusa.precompute.teachers.base import DRAFT, FEATURE, FEATURES, Pooling, Teacher

_VERSIONS_OF = ("cusa", "numpy", "pillow", "sentence-transformers", "torch", "transformers")


@dataclass(frozen=True)
class RunOptions:
    """What to make, and how.

    Attributes:
        out: Path of the store's index.
        pipeline: How to run a teacher.
        batch_size: Items per forward pass; ``None``: what suits the teacher.
        shard_rows: Rows per shard; ``None``: as the store's, or 16,384.
        shard_range: Only these of all the run's shards, by number; ``None``: all.
        dtype: What rows are stored as.
        normalizer: Name of the caption normaliser.
        jpeg_draft: ``"auto"``: halve large JPEGs while decoding where that leaves the embeddings alike; ``"off"``.
        reuse: Index of another store whose rows are taken over where they are of the same pictures,
            captions and settings; ``None``: of no other.
        pooling: What of a Hugging Face vision model's output becomes a row; ``None``: the best that
            it has.
        check_pictures: Whether rows that were made before pictures were turned upright and laid
            over white may stay, if no picture of the data set is one that this concerns.
    """

    out: Path
    pipeline: PipelineOptions
    batch_size: int | None
    shard_rows: int | None
    shard_range: tuple[int, int] | None
    dtype: str
    normalizer: str
    jpeg_draft: str
    reuse: Path | None = None
    pooling: Pooling | None = None
    check_pictures: bool = False


class Reporter(Protocol):
    """What a run tells its user."""

    def loading(self, teacher: str) -> None:
        """A teacher's weights are about to be loaded."""
        ...

    def loaded(self) -> None:
        """It is loaded."""
        ...

    def planned(self, teacher: str, split: str, n_rows: int, n_done: int) -> None:
        """Rows of a teacher for a split, and how many of them are finished."""
        ...

    def advanced(self, teacher: str, split: str, n_done: int, file: str) -> None:
        """Rows that all processes together have now done, and the shard being made here."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...

    def fault(self, text: str) -> None:
        """An image or a caption that cannot be used; the run will stop."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind.

    Attributes:
        index: The index written: the store's or, of a range of shards, a part's. ``None``: another process writes it.
        entries: This run's teachers.
    """

    index: Path | None
    entries: Mapping[str, TeacherEntry]


@dataclass(frozen=True)
class Estimate:
    """What a teacher would take.

    Attributes:
        teacher: The teacher's name in the store.
        n_rows: Its rows.
        n_shards: Its shards.
        n_bytes: Their bytes on disk.
        rates: Rows per second of this process.
    """

    teacher: str
    n_rows: int
    n_shards: int
    n_bytes: int
    rates: Rates


def part_path(out: Path, shard_range: tuple[int, int], tasks: Sequence[ShardTask]) -> Path:
    """The index of a range of shards, beside the store's; other shards have another name."""
    names = "\n".join(task.name for task in tasks)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    return out.with_name(f"{out.stem}.part-{shard_range[0]}-{shard_range[1]}-{digest}.h5")


class Run:
    """Makes the rows of teachers over a data set; every process of a run has one.

    Each process makes the shards that it claims; the leading one plans, and writes the index.

    Args:
        dataset: The data set.
        requests: The teachers.
        options: What to make, and how.
        ranks: The processes.
        reporter: Told what happens.
        check_stop: Called after each batch and while waiting; raises to stop.
    """

    def __init__(
        self,
        dataset: Dataset,
        requests: Sequence[TeacherRequest],
        options: RunOptions,
        ranks: Ranks,
        reporter: Reporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._dataset, self._requests, self._options = dataset, requests, options
        self._ranks, self._reporter, self._check_stop = ranks, reporter, check_stop
        self._data = Index.of(dataset, {})
        self._teachers: dict[str, Teacher] = {}
        self._settings: dict[str, TeacherSettings] = {}
        self._reuse = None
        if options.reuse is not None:
            self._reuse = StoreReuse(options.reuse, options.out, dataset, ranks)

    def go(self) -> Outcome:
        """Make what is not finished, and the index.

        Raises:
            CusaError: If the store is in use, holds other data or settings, or an item or a teacher fails.
        """
        out, shard_range = self._options.out, self._options.shard_range
        with announced_failure(self._ranks):
            self._old_index()  # other data are refused before anything is planned or locked
            tasks = self._agreed_tasks()
            self._check_inputs(tasks)
            lock = FolderLock(
                shard_folder(out), None if shard_range is None else [task.name for task in tasks]
            )
            try:
                self._take(lock)
                old = self._old_index()
                self._load(tasks, old)
                path = out if shard_range is None else part_path(out, shard_range, tasks)
                finished, pending = self._agreed_work(tasks, path)
                made = self._encode([tasks[number] for number in pending])
                if not self._ranks.leads:
                    self._ranks.tell(
                        f"made-{self._ranks.rank}", [asdict(info) for info in made.values()]
                    )
                    return Outcome(None, {})
                shards = {**finished, **self._made_by_all(tasks, made)}
                self._report_cut_captions()
                if self._reuse is not None:
                    for note in self._reuse.notes(
                        self._settings, [tasks[number] for number in pending]
                    ):
                        self._reporter.note(note)
                entries = self._entries([shards[task] for task in tasks], tasks)
                index = replace(self._data, teachers=entries)
                if shard_range is None and old is not None:
                    index = replace(old.without(entries), image_root=index.image_root).joined(
                        index, str(out)
                    )
                write_index(path, index)
                return Outcome(path, entries)
            finally:
                lock.release()

    def estimate(self, seconds: float) -> list[Estimate]:
        """Run each teacher for a few seconds; nothing is written.

        Args:
            seconds: For each of its two rates.

        Raises:
            CusaError: As :meth:`go`.
        """
        with announced_failure(self._ranks):
            tasks = self._agreed_tasks()
            self._check_inputs(tasks)
            self._load(tasks, self._old_index())
        found = []
        for name, teacher in self._teachers.items():
            settings, own = self._settings[name], [task for task in tasks if task.teacher == name]
            rates = measure(
                teacher, settings.normalizer, own, self._dataset, self._options.pipeline, seconds
            )
            n_rows = sum(task.n_rows for task in own)
            n_bytes = n_rows * settings.dim * np.dtype(settings.dtype).itemsize
            found.append(Estimate(name, n_rows, len(own), n_bytes, rates))
        return found

    def _old_index(self) -> Index | None:
        """The store's index, after a check that the data fit it; only the leading process asks for it."""
        out = self._options.out
        if not (self._ranks.leads and out.exists()):
            return None
        old = read_index(out)
        old.joined(self._data, str(out))
        return old

    def _agreed_tasks(self) -> list[ShardTask]:
        """All shards of this run, in an order that every process and every rerun has."""
        out, chosen = self._options.out, self._options.shard_range
        if self._ranks.leads:
            tasks = []
            for request in self._requests:
                n_rows = {
                    split: table.n_rows(request.modality)
                    for split, table in self._data.splits.items()
                }
                tasks += plan_teacher(out, request.name, n_rows, self._options.shard_rows)
            if chosen is not None:
                if not 0 <= chosen[0] < chosen[1] <= len(tasks):
                    raise SettingError(
                        f"--shard-range {chosen[0]}:{chosen[1]}: this run has the shards 0:{len(tasks)}, and A:B are "
                        "shards A to B - 1",
                        name="shard_range",
                    )
                tasks = tasks[slice(*chosen)]
            self._ranks.tell("tasks", [(t.teacher, t.split, t.start, t.stop) for t in tasks])
        return [ShardTask(out, *task) for task in self._ranks.hear("tasks", self._check_stop)]

    def _check_inputs(self, tasks: Sequence[ShardTask]) -> None:
        """Refuse data that cannot be read; the leading process alone looks at them."""
        if not self._ranks.leads:
            return
        modalities = {request.name: request.modality for request in self._requests}
        options, reporter = self._options, self._reporter
        skip_errors = options.pipeline.skip_errors
        check_inputs(
            self._dataset,
            tasks,
            modalities,
            options.normalizer,
            skip_errors,
            reporter.fault,
            reporter.note,
        )

    def _take(self, lock: FolderLock) -> None:
        if self._ranks.leads:
            lock.take()
            lock.share()
            self._ranks.tell("locked", lock.held)
            if not lock.held:
                self._reporter.note(
                    f"{self._options.out.parent} knows no locks: start no second run on this store"
                )
        elif self._ranks.hear("locked", self._check_stop):
            lock.join()

    def _load(self, tasks: Sequence[ShardTask], old: Index | None) -> None:
        """All teachers that have shards, before any is run: what is missing shows at once."""
        p, needed = self._options.pipeline, {task.teacher for task in tasks}
        for request in (r for r in self._requests if r.name in needed):
            self._reporter.loading(request.name)
            teacher = request.load(p.device, self._options.batch_size, self._options.pooling)
            if feature := teacher.transform.get(FEATURE):
                choice = f"{FEATURES[feature]} ({feature})"
                self._reporter.note(f"{request.name}: {choice} becomes the row")
            if teacher.modality == "image":
                known = None
                if self._ranks.leads:
                    known = stored_settings(request.name, old, tasks)
                    if known is None and self._reuse is not None:
                        known = self._reuse.settings_like(teacher, self._settings_of)
                teacher = replace(
                    teacher,
                    draft_size=self._agreed_draft(request.name, teacher, known),
                    decoding=self._agreed_decoding(request.name, teacher, known),
                )
            settings = self._settings_of(teacher)
            if self._ranks.leads:
                self._ranks.tell(f"settings-{request.name}", settings.to_json())
            leading = TeacherSettings.from_json(
                self._ranks.hear(f"settings-{request.name}", self._check_stop)
            )
            if fields := settings.differing(leading):
                message = f"teacher {request.name!r} is not the same in rank 0: {'; '.join(fields)}"
                raise TeacherError(message, name=request.name)
            self._teachers[request.name], self._settings[request.name] = teacher, settings
            self._reporter.loaded()
            if not self._ranks.leads:
                self._check_stop()
        if old is not None:
            entries = {
                name: TeacherEntry(settings, {}) for name, settings in self._settings.items()
            }
            old.joined(replace(self._data, teachers=entries), str(self._options.out))

    def _settings_of(self, teacher: Teacher) -> TeacherSettings:
        options = self._options
        return teacher.settings(options.pipeline.precision, options.dtype, options.normalizer)

    def _agreed_decoding(
        self,
        name: str,
        teacher: Teacher,
        known: TeacherSettings | None,
    ) -> dict[str, str]:
        """How the settings say that pictures are decoded: as today, or as older rows have it."""
        if self._ranks.leads:
            decoding = dict(teacher.decoding)
            if known is not None and is_older(known):
                if not self._options.check_pictures:
                    raise older_rows(self._options.out, name)
                skip_errors = self._options.pipeline.skip_errors
                refuse_changed_pictures(self._dataset, name, skip_errors)
                finding = "no picture has an EXIF orientation or transparency"
                self._reporter.note(f"{name}: {finding}; its rows are kept")
                decoding = {}
            self._ranks.tell(f"decoding-{name}", decoding)
        return self._ranks.hear(f"decoding-{name}", self._check_stop)

    def _agreed_draft(
        self, name: str, teacher: Teacher, known: TeacherSettings | None
    ) -> int | None:
        """Pixels that halved JPEGs keep: as the rows that are there have it, or as a comparison finds."""
        if self._ranks.leads:
            size = None
            if self._options.jpeg_draft == "auto" and known is not None:
                size = known.transform.get(DRAFT)
            elif self._options.jpeg_draft == "auto":
                draft = choose_draft(
                    teacher,
                    self._dataset,
                    self._options.pipeline.device,
                    self._options.pipeline.precision,
                )
                size = draft.size
                if draft.cosine is not None:
                    verb = "are halved" if size else "are not halved"
                    self._reporter.note(
                        f"{name}: large JPEGs {verb} while decoded (least cosine {draft.cosine:.5f})"
                    )
            self._ranks.tell(f"draft-{name}", size)
        return self._ranks.hear(f"draft-{name}", self._check_stop)

    def _agreed_work(
        self, tasks: Sequence[ShardTask], index: Path
    ) -> tuple[dict[ShardTask, ShardInfo], list[int]]:
        """Finished shards (known to the leading process alone), and the numbers of those to make."""
        finished: dict[ShardTask, ShardInfo] = {}
        if self._ranks.leads:
            redo = not self._options.pipeline.skip_errors
            found, damaged = finished_shards(tasks, [self._header(task) for task in tasks], redo)
            finished = {tasks[number]: info for number, info in found.items()}
            for path in damaged.values():
                self._reporter.note(f"{path} is damaged and will be made again")
            pending = [number for number in range(len(tasks)) if number not in found]
            sweep([*(task.path for task in tasks), index])
            self._report_plan(tasks, finished)
            self._ranks.tell("pending", pending)
        return finished, self._ranks.hear("pending", self._check_stop)

    def _header(self, task: ShardTask) -> ShardHeader:
        settings, fingerprint = (
            self._settings[task.teacher],
            self._data.splits[task.split].fingerprint,
        )
        return ShardHeader(task.teacher, task.split, fingerprint, task.start, task.stop, settings)

    def _report_plan(
        self, tasks: Sequence[ShardTask], finished: Mapping[ShardTask, ShardInfo]
    ) -> None:
        rows: dict[tuple[str, str], int] = defaultdict(int)
        done: dict[tuple[str, str], int] = defaultdict(int)
        n_bytes = 0
        for task in tasks:
            rows[task.teacher, task.split] += task.n_rows
            if task in finished:
                done[task.teacher, task.split] += task.n_rows
            else:
                settings = self._settings[task.teacher]
                n_bytes += task.n_rows * settings.dim * np.dtype(settings.dtype).itemsize
        for place, n_rows in rows.items():
            self._reporter.planned(*place, n_rows, done[place])
        folder = shard_folder(self._options.out)
        if (free := shutil.disk_usage(folder).free) < n_bytes:
            self._reporter.note(
                f"{n_bytes / 1e9:,.1f} GB are to be written, {folder} has {free / 1e9:,.1f} GB left"
            )

    def _encode(self, pending: Sequence[ShardTask]) -> dict[ShardTask, ShardInfo]:
        """Claim shards and make them, teacher by teacher."""
        made: dict[ShardTask, ShardInfo] = {}
        for name, teacher in self._teachers.items():
            own = [task for task in pending if task.teacher == name]

            def claimed(own: Sequence[ShardTask] = own, name: str = name) -> Iterator[ShardTask]:
                while (number := self._ranks.claim(f"next-{name}")) < len(own):
                    yield own[number]

            if own:
                normalizer = self._settings[name].normalizer
                options = self._options.pipeline
                reuse = None
                if self._reuse is not None:
                    reuse = self._reuse.rows_of(name, self._settings[name], self._check_stop)
                made |= encode_shards(
                    teacher,
                    normalizer,
                    self._header,
                    claimed(),
                    self._dataset,
                    options,
                    self._advanced,
                    reuse,
                    partial(self._ranks.add, f"cut-{name}"),
                )
        return made

    def _report_cut_captions(self) -> None:
        for name, teacher in self._teachers.items():
            if n_captions := self._ranks.add(f"cut-{name}", 0):
                limit = f"longer than its {teacher.token_limit} tokens"
                self._reporter.note(f"{name}: captions {limit} that were cut: {n_captions:,}")

    def _advanced(self, task: ShardTask, n_rows: int) -> None:
        total = self._ranks.add(f"rows-{task.teacher}-{task.split}", n_rows)
        self._reporter.advanced(task.teacher, task.split, total, task.path.name)
        self._check_stop()

    def _made_by_all(
        self, tasks: Sequence[ShardTask], made: Mapping[ShardTask, ShardInfo]
    ) -> dict[ShardTask, ShardInfo]:
        """The shards that this and every other process made."""
        by_file, found = {task.file: task for task in tasks}, dict(made)
        for rank in range(1, self._ranks.size):
            for told in self._ranks.hear(f"made-{rank}", self._while_others_work):
                info = ShardInfo(**{**told, "skipped": tuple(told["skipped"])})
                found[by_file[info.file]] = info
        return found

    def _while_others_work(self) -> None:
        for name in self._teachers:
            for split in self._dataset.splits:
                self._reporter.advanced(name, split, self._ranks.add(f"rows-{name}-{split}", 0), "")
        self._check_stop()

    def _entries(
        self, shards: Sequence[ShardInfo], tasks: Sequence[ShardTask]
    ) -> dict[str, TeacherEntry]:
        """What the index says of this run's teachers; shards in the order of tasks."""
        entries = {}
        for name, settings in self._settings.items():
            by_split: dict[str, list[ShardInfo]] = defaultdict(list)
            for task, info in zip(tasks, shards, strict=True):
                if task.teacher == name:
                    by_split[task.split].append(info)
            infos = [info for of_split in by_split.values() for info in of_split]
            whole = self._options.shard_range is None  # a part may well be without any
            if whole and all(len(i.skipped) == i.stop - i.start for i in infos):
                what = (
                    "image could be read; check --image-root"
                    if settings.modality == "image"
                    else "caption has words; correct them"
                )
                raise DataError(
                    f"teacher {name!r}: no {what}, then run again with --on-error fail to make the rows anew",
                    name=name,
                )
            if infos:
                parts = {split: tuple(of_split) for split, of_split in by_split.items()}
                versions: Mapping[str, str] | None = None
                if self._reuse is not None:
                    versions = self._reuse.versions(name, settings)
                versions = versions or {package: version(package) for package in _VERSIONS_OF}
                source = self._teachers[name].source
                source = (
                    str(Path(source).resolve()) if Path(source).exists() else source
                )  # audit runs elsewhere
                entries[name] = TeacherEntry(settings, parts, source, versions)
        return entries

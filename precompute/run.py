"""A run of stage one: plan, lock, load the teachers, hand out the shards, write the index."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cusa.data.errors import SettingError
from cusa.data.files import FolderLock, sweep
from cusa.data.records import Dataset
from cusa.data.store.index import Index, TeacherEntry, read_index, write_index
from cusa.data.store.schema import TeacherSettings, shard_folder
from cusa.data.store.shards import ShardHeader, ShardInfo
from cusa.precompute.estimate import Rates, measure
from cusa.precompute.index_entries import teacher_entries
from cusa.precompute.input_check import check_inputs
from cusa.precompute.pipeline import encode_shards
from cusa.precompute.processes import RunProcesses, announced_failure
from cusa.precompute.reuse import StoreReuse
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.shard_plan import ShardTask, finished_shards, plan_teacher
from cusa.precompute.teacher_loading import LoadedTeacher, TeacherLoader
from cusa.precompute.teachers import TeacherRequest


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        index: The index written: the store's or, of a range of shards, a part's. ``None``: another
            process writes it.
        entries: This run's teachers.
    """

    index: Path | None
    entries: Mapping[str, TeacherEntry]


@dataclass(frozen=True)
class Estimate:
    """The time and space that a teacher would take.

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


class Run:
    """Makes the rows of teachers over a data set; every process of a run has one.

    Each process makes the shards that it claims; the leading one plans, and writes the index.

    Args:
        dataset: The data set.
        requests: The teachers.
        options: What to make, and how.
        processes: The processes.
        reporter: Told what happens.
        check_stop: Called after each batch and while waiting; raises to stop.
    """

    def __init__(
        self,
        dataset: Dataset,
        requests: Sequence[TeacherRequest],
        options: RunOptions,
        processes: RunProcesses,
        reporter: RunReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._dataset = dataset
        self._requests = requests
        self._options = options
        self._processes = processes
        self._reporter = reporter
        self._check_stop = check_stop
        self._data_index = Index.of(dataset, {})
        self._teachers: dict[str, LoadedTeacher] = {}
        self._reuse: StoreReuse | None = None
        if options.reuse is not None:
            self._reuse = StoreReuse(options.reuse, options.out, dataset, processes)

    def go(self) -> Outcome:
        """Make what is not finished, and the index.

        Raises:
            CusaError: If the store is in use, holds other data or settings, or an item or a teacher
                fails.
        """
        with announced_failure(self._processes):
            self._stored_index()  # other data are refused before anything is planned or locked
            tasks = self._plan()
            self._check_inputs(tasks)

            locked_shards = None
            if self._options.shard_range is not None:
                locked_shards = [task.name for task in tasks]
            lock = FolderLock(shard_folder(self._options.out), locked_shards)
            try:
                self._take(lock)
                return self._make(tasks)
            finally:
                lock.release()

    def estimate(self, seconds: float) -> list[Estimate]:
        """Run each teacher for a few seconds; nothing is written.

        Args:
            seconds: For each of its two rates.

        Raises:
            CusaError: As :meth:`go`.
        """
        with announced_failure(self._processes):
            tasks = self._plan()
            self._check_inputs(tasks)
            self._load_teachers(tasks, self._stored_index())

        estimates: list[Estimate] = []
        for name, loaded in self._teachers.items():
            teacher_tasks = [task for task in tasks if task.teacher == name]
            rates = measure(
                loaded.teacher,
                loaded.settings.normalizer,
                teacher_tasks,
                self._dataset,
                self._options.pipeline,
                seconds,
            )
            n_rows = sum(task.n_rows for task in teacher_tasks)
            n_bytes = n_rows * _bytes_per_row(loaded.settings)
            estimates.append(Estimate(name, n_rows, len(teacher_tasks), n_bytes, rates))
        return estimates

    # --- before teachers are loaded

    def _stored_index(self) -> Index | None:
        """Return the store's index, after a check that the data fit it.

        ``None`` if there is none, or another process leads.
        """
        out = self._options.out
        if not (self._processes.leads and out.exists()):
            return None
        stored_index = read_index(out)
        stored_index.joined(self._data_index, str(out))
        return stored_index

    def _plan(self) -> list[ShardTask]:
        """Return this run's shards, in an order that every process and every rerun has."""
        shards = self._processes.agree("tasks", self._shards_in_range, self._check_stop)
        return [ShardTask(self._options.out, *shard) for shard in shards]

    def _shards_in_range(self) -> list[tuple[str, str, int, int]]:
        """Return teacher, split, first row and row after the last of each shard to plan."""
        options = self._options
        tasks: list[ShardTask] = []
        for request in self._requests:
            n_rows = {
                split: table.n_rows(request.modality)
                for split, table in self._data_index.splits.items()
            }
            tasks += plan_teacher(options.out, request.name, n_rows, options.shard_rows)

        if options.shard_range is not None:
            first, stop = options.shard_range
            if not 0 <= first < stop <= len(tasks):
                raise SettingError(
                    f"--shard-range {first}:{stop}: this run has the shards 0:{len(tasks)}, and "
                    "A:B are shards A to B - 1",
                    name="shard_range",
                )
            tasks = tasks[first:stop]
        return [(task.teacher, task.split, task.start, task.stop) for task in tasks]

    def _check_inputs(self, tasks: Sequence[ShardTask]) -> None:
        """Refuse data that cannot be read; the leading process alone looks at them."""
        if not self._processes.leads:
            return
        check_inputs(
            self._dataset,
            tasks,
            {request.name: request.modality for request in self._requests},
            self._options.normalizer,
            self._options.pipeline.skip_errors,
            self._reporter.fault,
            self._reporter.note,
        )

    def _take(self, lock: FolderLock) -> None:
        """Lock the shards against other runs."""
        if self._processes.leads:
            lock.take()
            lock.share()
            self._processes.tell("locked", lock.held)
            if not lock.held:
                self._reporter.note(
                    f"{self._options.out.parent} knows no locks: start no second run on this store"
                )
        elif self._processes.hear("locked", self._check_stop):
            lock.join()

    # --- making shards

    def _make(self, tasks: Sequence[ShardTask]) -> Outcome:
        """Make what is not finished, and the index."""
        stored_index = self._stored_index()
        self._load_teachers(tasks, stored_index)
        index_path = self._index_path(tasks)
        finished, pending = self._divide(tasks, index_path)
        made = self._encode(pending)
        if not self._processes.leads:
            self._processes.tell(
                f"made-{self._processes.rank}", [asdict(shard) for shard in made.values()]
            )
            return Outcome(None, {})

        shards = {**finished, **made, **self._made_by_others(tasks)}
        self._report_cut_captions()
        self._report_reused(pending)
        is_range = self._options.shard_range is not None
        entries = teacher_entries(self._teachers, tasks, shards, self._reuse, is_range)
        index = replace(self._data_index, teachers=entries)
        if stored_index is not None and not is_range:
            # The image root is the one thing that a later run may change.
            stored_index = replace(stored_index.without(entries), image_root=index.image_root)
            index = stored_index.joined(index, str(self._options.out))
        write_index(index_path, index)
        return Outcome(index_path, entries)

    def _load_teachers(self, tasks: Sequence[ShardTask], stored_index: Index | None) -> None:
        """Load all teachers that have shards, before any is run: what is missing shows at once."""
        loader = TeacherLoader(
            self._dataset,
            self._options,
            self._processes,
            self._reuse,
            self._reporter,
            self._check_stop,
        )
        needed = {task.teacher for task in tasks}
        for request in self._requests:
            if request.name in needed:
                self._teachers[request.name] = loader.load(request, stored_index, tasks)

        if stored_index is not None:
            entries = {
                name: TeacherEntry(loaded.settings, {}) for name, loaded in self._teachers.items()
            }
            # Teachers with other settings are refused.
            stored_index.joined(replace(self._data_index, teachers=entries), str(self._options.out))

    def _index_path(self, tasks: Sequence[ShardTask]) -> Path:
        """Return the path of the index to write: the store's, or one beside it for a range."""
        out = self._options.out
        if self._options.shard_range is None:
            return out
        # Other shards have another name, also where the same range is of another run.
        first, stop = self._options.shard_range
        names = "\n".join(task.name for task in tasks)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        return out.with_name(f"{out.stem}.part-{first}-{stop}-{digest}.h5")

    def _divide(
        self,
        tasks: Sequence[ShardTask],
        index_path: Path,
    ) -> tuple[dict[ShardTask, ShardInfo], list[ShardTask]]:
        """Divide shards into finished ones, known to the leading process, and pending ones."""
        finished: dict[ShardTask, ShardInfo] = {}

        def find_pending() -> list[int]:
            headers = [self._header(task) for task in tasks]
            redo_skipped = not self._options.pipeline.skip_errors
            info_by_number, damaged = finished_shards(tasks, headers, redo_skipped)
            for path in damaged.values():
                self._reporter.note(f"{path} is damaged and will be made again")
            for number, info in info_by_number.items():
                finished[tasks[number]] = info
            sweep([*(task.path for task in tasks), index_path])
            self._report_plan(tasks, finished)
            return [number for number in range(len(tasks)) if number not in info_by_number]

        pending = self._processes.agree("pending", find_pending, self._check_stop)
        return finished, [tasks[number] for number in pending]

    def _header(self, task: ShardTask) -> ShardHeader:
        return ShardHeader(
            task.teacher,
            task.split,
            self._data_index.splits[task.split].fingerprint,
            task.start,
            task.stop,
            self._teachers[task.teacher].settings,
        )

    def _encode(self, pending: Sequence[ShardTask]) -> dict[ShardTask, ShardInfo]:
        """Claim shards and make them, teacher by teacher."""
        made: dict[ShardTask, ShardInfo] = {}
        for name, loaded in self._teachers.items():
            teacher_tasks = [task for task in pending if task.teacher == name]
            if not teacher_tasks:
                continue
            reuse = None
            if self._reuse is not None:
                reuse = self._reuse.rows_of(name, loaded.settings, self._check_stop)
            made |= encode_shards(
                loaded.teacher,
                loaded.settings.normalizer,
                self._header,
                self._claim(name, teacher_tasks),
                self._dataset,
                self._options.pipeline,
                self._advanced,
                reuse,
                on_cut=partial(self._processes.add, f"cut-{name}"),
            )
        return made

    def _claim(self, name: str, tasks: Sequence[ShardTask]) -> Iterator[ShardTask]:
        """Yield the shards of a teacher that no other process has claimed."""
        while True:
            number = self._processes.claim(f"next-{name}")
            if number >= len(tasks):
                return
            yield tasks[number]

    def _made_by_others(self, tasks: Sequence[ShardTask]) -> dict[ShardTask, ShardInfo]:
        """Wait for the other processes, and return the shards that they made."""
        task_of_file = {task.file: task for task in tasks}
        made: dict[ShardTask, ShardInfo] = {}
        for rank in range(1, self._processes.size):
            for fields in self._processes.hear(f"made-{rank}", self._while_others_work):
                fields["skipped"] = tuple(fields["skipped"])  # JSON has lists alone
                shard = ShardInfo(**fields)
                made[task_of_file[shard.file]] = shard
        return made

    # --- reporting

    def _report_plan(
        self,
        tasks: Sequence[ShardTask],
        finished: Mapping[ShardTask, ShardInfo],
    ) -> None:
        n_rows: Counter[tuple[str, str]] = Counter()
        n_done: Counter[tuple[str, str]] = Counter()
        n_bytes = 0
        for task in tasks:
            n_rows[task.teacher, task.split] += task.n_rows
            if task in finished:
                n_done[task.teacher, task.split] += task.n_rows
            else:
                n_bytes += task.n_rows * _bytes_per_row(self._teachers[task.teacher].settings)

        for (teacher_name, split), n_planned in n_rows.items():
            self._reporter.planned(teacher_name, split, n_planned, n_done[teacher_name, split])
        folder = shard_folder(self._options.out)
        n_free = shutil.disk_usage(folder).free
        if n_free < n_bytes:
            self._reporter.note(
                f"{n_bytes / 1e9:,.1f} GB are to be written, {folder} has {n_free / 1e9:,.1f} GB "
                "left"
            )

    def _advanced(self, task: ShardTask, n_rows: int) -> None:
        n_done = self._processes.add(_progress_counter(task.teacher, task.split), n_rows)
        self._reporter.advanced(task.teacher, task.split, n_done, task.path.name)
        self._check_stop()

    def _while_others_work(self) -> None:
        for name in self._teachers:
            for split in self._dataset.splits:
                n_done = self._processes.add(_progress_counter(name, split), 0)
                self._reporter.advanced(name, split, n_done, "")
        self._check_stop()

    def _report_cut_captions(self) -> None:
        for name, loaded in self._teachers.items():
            n_captions = self._processes.add(f"cut-{name}", 0)
            if n_captions:
                self._reporter.note(
                    f"{name}: captions longer than its {loaded.teacher.token_limit} tokens that "
                    f"were cut: {n_captions:,}"
                )

    def _report_reused(self, made: Sequence[ShardTask]) -> None:
        if self._reuse is None:
            return
        settings = {name: loaded.settings for name, loaded in self._teachers.items()}
        for note in self._reuse.notes(settings, made):
            self._reporter.note(note)


def _progress_counter(teacher_name: str, split: str) -> str:
    """Name the counter of the rows that all processes have done."""
    return f"rows-{teacher_name}-{split}"


def _bytes_per_row(settings: TeacherSettings) -> int:
    return settings.dim * np.dtype(settings.dtype).itemsize

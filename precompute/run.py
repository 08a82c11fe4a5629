"""A run of stage one: plan, lock, load the teachers, hand out the shards, write the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import starmap
from operator import attrgetter
from pathlib import Path

from cusa.data.files import FolderLock, sweep
from cusa.data.records import Dataset
from cusa.data.store.index import Index, read_index, write_index, write_part
from cusa.data.store.part_texts import texts_path_of_store
from cusa.data.store.schema import TeacherSettings, shard_folder
from cusa.data.store.shards import ShardHeader, ShardInfo
from cusa.data.store.teacher_entry import TeacherEntry
from cusa.precompute.estimate import Estimate, measure
from cusa.precompute.index_entries import teacher_entries
from cusa.precompute.input_check import check_inputs
from cusa.precompute.pipeline import encode_shards
from cusa.precompute.processes import RunProcesses, announced_failure
from cusa.precompute.reuse import StoreReuse
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.run_progress import RunProgress
from cusa.precompute.shard_plan import (
    Shard,
    ShardTask,
    finished_shards,
    intact_shards,
    part_path,
    plan_teacher,
    tasks_in_range,
)
from cusa.precompute.teacher_loading import LoadedTeacher, TeacherLoader
from cusa.precompute.teachers import TeacherRequest

ShardInfos = dict[ShardTask, ShardInfo]


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        index: The index written: the store's or, for a range of shards, a part's. ``None``: another
            process writes it.
        entries: The index entries of this run's teachers, by name; empty if ``index`` is ``None``.
    """

    index: Path | None
    entries: Mapping[str, TeacherEntry]


class Run:
    """Makes the rows of teachers for a data set; every process of a run has an instance.

    Each process makes the shards that it claims. The leading one also plans, and writes the index.

    Args:
        dataset: The data set.
        requests: The teachers.
        options: The run's settings.
        processes: The processes.
        reporter: Receives the events of the run.
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
        self._redo_skipped = not options.pipeline.skip_errors
        self._progress = RunProgress(processes, reporter, check_stop)
        self._data_index = Index.from_dataset(dataset, {})
        self._intact: dict[ShardTask, Shard] = {}
        self._teachers: dict[str, LoadedTeacher] = {}
        self._reuse: StoreReuse | None = None
        if options.reuse is not None:
            self._reuse = StoreReuse(options.reuse, options.out, dataset, processes)

    def go(self) -> Outcome:
        """Make the shards that are not finished, and write the index.

        Raises:
            CusaError: If the store is in use, holds other data or settings, or an item or a teacher
                fails.
        """
        with announced_failure(self._processes):
            # A store of other data is refused before anything is planned or locked.
            self._stored_index()
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
        """Run each teacher for a few seconds without writing anything.

        Args:
            seconds: Duration of the measurement of each of a teacher's two rates.

        Raises:
            CusaError: As :meth:`go` raises it.
        """
        with announced_failure(self._processes):
            tasks = self._plan()
            self._check_inputs(tasks)
            self._load_teachers(tasks, self._stored_index())

        estimates: list[Estimate] = []
        for name, loaded in self._teachers.items():
            teacher_tasks = _tasks_of(name, tasks)
            rates = measure(
                loaded.teacher,
                loaded.settings.normalizer,
                teacher_tasks,
                self._dataset,
                self._options.pipeline,
                seconds,
            )
            n_rows = sum(task.n_rows for task in teacher_tasks)
            n_bytes = n_rows * loaded.bytes_per_row
            estimates.append(Estimate(name, n_rows, len(teacher_tasks), n_bytes, rates))
        return estimates

    # --- before teachers are loaded

    def _stored_index(self) -> Index | None:
        """Return the store's index, after checking that it belongs to the data.

        ``None`` if the store does not exist, or another process leads.
        """
        out = self._options.out
        if not (self._processes.leads and out.exists()):
            return None
        stored_index = read_index(out)
        stored_index.joined(self._data_index, str(out))
        return stored_index

    def _plan(self) -> list[ShardTask]:
        """Return this run's shards, in the same order for every process and every rerun."""
        shards = self._processes.agree("tasks", self._shards_in_range, self._check_stop)
        return list(starmap(partial(ShardTask, self._options.out), shards))

    def _shards_in_range(self) -> list[tuple[str, str, int, int]]:
        """Return teacher, split, first row and row after the last of each shard to plan."""
        options = self._options
        tasks: list[ShardTask] = []
        for request in self._requests:
            n_rows: dict[str, int] = {}
            for split, table in self._data_index.splits.items():
                n_rows[split] = table.n_rows(request.modality)
            tasks += plan_teacher(options.out, request.name, n_rows, options.shard_rows)
        if options.shard_range is not None:
            tasks = tasks_in_range(tasks, options.shard_range)
        return list(map(attrgetter("teacher", "split", "start", "stop"), tasks))

    def _check_inputs(self, tasks: Sequence[ShardTask]) -> None:
        """Refuse images and captions that cannot be used; only the leading process checks."""
        if not self._processes.leads:
            return
        self._intact = intact_shards(tasks)
        pending = dict.fromkeys(tasks)
        for task, (_, info) in self._intact.items():
            if not (self._redo_skipped and info.skipped):
                del pending[task]
        check_inputs(
            self._dataset,
            pending,
            {request.name: request.modality for request in self._requests},
            self._options.normalizer,
            self._options.pipeline.skip_errors,
            self._reporter.fault,
            self._reporter.note,
        )

    def _take(self, lock: FolderLock) -> None:
        """Lock the shards against other runs."""

        def lock_shards() -> bool:
            lock.take()
            lock.share()
            if not lock.held:
                folder = self._options.out.parent
                self._reporter.note(
                    f"{folder} does not support locks: do not start a second run on this store"
                )
            return lock.held

        is_locked = self._processes.agree("locked", lock_shards, self._check_stop)
        if is_locked and not self._processes.leads:
            lock.join()

    # --- making shards

    def _make(self, tasks: Sequence[ShardTask]) -> Outcome:
        stored_index = self._stored_index()
        self._load_teachers(tasks, stored_index)
        shard_range = self._options.shard_range
        index_path = self._options.out
        if shard_range is not None:
            index_path = part_path(self._options.out, shard_range, tasks)
        finished, pending = self._divide(tasks, index_path)
        encoded = self._encode(pending)
        if not self._processes.leads:
            key = f"made-{self._processes.rank}"
            self._processes.tell(key, list(map(asdict, encoded.values())))
            return Outcome(None, {})

        shards = {**finished, **encoded, **self._hear_shards(tasks)}
        self._report_captions_and_reuse(pending)
        is_range = shard_range is not None
        entries = teacher_entries(self._teachers, tasks, shards, self._reuse, is_range)
        index = replace(self._data_index, teachers=entries)
        if stored_index is not None and not is_range:
            # The images may have moved since the store was created.
            stored_index = replace(stored_index.without(entries), image_root=index.image_root)
            index = stored_index.joined(index, str(self._options.out))
        if is_range:
            write_part(index_path, index, self._options.out)
        else:
            write_index(index_path, index)
        return Outcome(index_path, entries)

    def _load_teachers(
        self,
        tasks: Sequence[ShardTask],
        stored_index: Index | None,
    ) -> None:
        """Load the teachers; refuse one that the store has with other settings."""
        loader = TeacherLoader(
            self._dataset,
            self._options,
            self._processes,
            self._reporter,
            self._check_stop,
        )
        settings: dict[str, TeacherSettings] = {}
        if stored_index is not None:
            for name, entry in stored_index.teachers.items():
                settings[name] = entry.settings
        for task, (header, _) in self._intact.items():
            settings.setdefault(task.teacher, header.settings)

        # All teachers are loaded before any is run, so that a missing one is noticed at once.
        needed = {task.teacher for task in tasks}
        for request in self._requests:
            if request.name in needed:
                loaded = loader.load(request, settings.get(request.name))
                self._teachers[request.name] = loaded
        if stored_index is not None:
            # Joining refuses a teacher with other settings than the store's.
            entries: dict[str, TeacherEntry] = {}
            for name, loaded in self._teachers.items():
                entries[name] = TeacherEntry(loaded.settings, {})
            index = replace(self._data_index, teachers=entries)
            stored_index.joined(index, str(self._options.out))

    def _divide(
        self,
        tasks: Sequence[ShardTask],
        index_path: Path,
    ) -> tuple[ShardInfos, list[ShardTask]]:
        """Divide shards into finished ones, empty unless this process leads, and pending ones."""
        finished: ShardInfos = {}

        def find_pending() -> list[int]:
            nonlocal finished
            finished, damaged = finished_shards(
                tasks,
                self._header,
                self._redo_skipped,
                self._intact,
            )
            for path in damaged:
                self._reporter.note(f"{path} is damaged and will be made again")

            # Only under the lock is it certain that no other run is writing these files.
            shard_paths = [task.path for task in tasks]
            texts_path = texts_path_of_store(self._options.out, self._data_index.splits)
            sweep([*shard_paths, index_path], shared_paths=[texts_path])
            folder = shard_folder(self._options.out)
            self._progress.report_plan(tasks, finished, self._teachers, folder)
            return [number for number, task in enumerate(tasks) if task not in finished]

        pending_numbers = self._processes.agree("pending", find_pending, self._check_stop)
        return finished, [tasks[number] for number in pending_numbers]

    def _header(self, task: ShardTask) -> ShardHeader:
        return ShardHeader(
            task.teacher,
            task.split,
            self._data_index.splits[task.split].fingerprint,
            task.start,
            task.stop,
            self._teachers[task.teacher].settings,
        )

    def _encode(self, pending: Sequence[ShardTask]) -> ShardInfos:
        """Claim shards and make them, teacher by teacher."""
        encoded: ShardInfos = {}
        for name, loaded in self._teachers.items():
            teacher_tasks = _tasks_of(name, pending)
            if not teacher_tasks:
                continue
            reuse = None
            if self._reuse is not None:
                reuse = self._reuse.rows_of(name, loaded.settings, self._check_stop)
            encoded |= encode_shards(
                loaded.teacher,
                loaded.settings.normalizer,
                self._header,
                self._claim(name, teacher_tasks),
                self._dataset,
                self._options.pipeline,
                self._progress.advance,
                reuse,
                on_cut=self._progress.cut_counter(name),
            )
        return encoded

    def _claim(
        self,
        name: str,
        tasks: Sequence[ShardTask],
    ) -> Iterator[ShardTask]:
        """Yield the shards of a teacher that no other process has claimed."""
        while (number := self._processes.claim(f"next-{name}")) < len(tasks):
            yield tasks[number]

    def _hear_shards(self, tasks: Sequence[ShardTask]) -> ShardInfos:
        """Wait for the other processes, and return the shards that they encoded."""
        task_of_file = {task.file: task for task in tasks}
        encoded: ShardInfos = {}
        for rank in range(1, self._processes.size):
            follow_others = partial(self._progress.follow_others, tasks)
            for fields in self._processes.hear(f"made-{rank}", follow_others):
                # JSON has no tuples.
                fields["skipped"] = tuple(fields["skipped"])
                shard = ShardInfo(**fields)
                encoded[task_of_file[shard.file]] = shard
        return encoded

    def _report_captions_and_reuse(self, pending: Sequence[ShardTask]) -> None:
        """Report the captions cut and the rows reused by all processes, once they are done."""
        for name, loaded in self._teachers.items():
            self._progress.report_cut_captions(name, loaded.teacher.token_limit)
            n_rows = sum(task.n_rows for task in _tasks_of(name, pending))
            if self._reuse is not None and n_rows:
                self._reporter.note(self._reuse.note(name, loaded.settings, n_rows))


def _tasks_of(teacher_name: str, tasks: Sequence[ShardTask]) -> list[ShardTask]:
    return [task for task in tasks if task.teacher == teacher_name]

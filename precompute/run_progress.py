"""The progress of all processes of a run, counted together and reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from cusa.precompute.processes import RunProcesses
from cusa.precompute.run_options import RunReporter
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teacher_loading import LoadedTeacher

_TEACHER_AND_SPLIT = attrgetter("teacher", "split")


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run.

    Attributes:
        processes: The processes, which share their counters.
        reporter: Receives the events.
        check_stop: Called after each batch and while waiting; raises to stop.
    """

    processes: RunProcesses
    reporter: RunReporter
    check_stop: Callable[[], None]

    def report_plan(
        self,
        tasks: Sequence[ShardTask],
        finished: Collection[ShardTask],
        teachers: Mapping[str, LoadedTeacher],
        folder: Path,
    ) -> None:
        """Report how many rows are finished, and whether the disk has room for the others.

        Args:
            tasks: The shards of the run.
            finished: The shards that an earlier run made.
            teachers: The loaded teachers, by name.
            folder: Where shards are written.
        """
        n_bytes = 0
        for (teacher_name, split), split_tasks in groupby(tasks, _TEACHER_AND_SPLIT):
            n_rows = 0
            n_pending = 0
            for task in split_tasks:
                n_rows += task.n_rows
                n_pending += task.n_rows * (task not in finished)
            self.reporter.planned(teacher_name, split, n_rows, n_rows - n_pending)
            n_bytes += n_pending * teachers[teacher_name].bytes_per_row

        n_free = shutil.disk_usage(folder).free
        if n_free < n_bytes:
            self.reporter.note(
                f"{n_bytes / 1e9:,.1f} GB will be written, but {folder} has only "
                f"{n_free / 1e9:,.1f} GB free",
            )

    def advance(
        self,
        task: ShardTask,
        n_rows: int,
    ) -> None:
        """Count rows of a shard that are finished, and report those of all processes."""
        n_done = self.processes.add(_row_counter(task.teacher, task.split), n_rows)
        self.reporter.advanced(task.teacher, task.split, n_done, task.path.name)
        self.check_stop()

    def follow_others(self, tasks: Sequence[ShardTask]) -> None:
        """Report the rows of all processes while this one waits for the others."""
        for (teacher_name, split), _ in groupby(tasks, _TEACHER_AND_SPLIT):
            n_done = self.processes.add(_row_counter(teacher_name, split), 0)
            self.reporter.advanced(teacher_name, split, n_done, "")
        self.check_stop()

    def cut_counter(self, teacher_name: str) -> Callable[[int], int]:
        """Return a function that adds to the number of captions cut for a teacher."""
        return partial(self.processes.add, _cut_counter(teacher_name))

    def report_cut_captions(self, teacher_name: str, token_limit: int | None) -> None:
        """Report how many captions all processes cut for a teacher."""
        n_captions = self.processes.add(_cut_counter(teacher_name), 0)
        if n_captions:
            self.reporter.note(
                f"{teacher_name}: captions that were cut, as they have more than {token_limit} "
                f"tokens: {n_captions:,}",
            )


def _row_counter(teacher_name: str, split: str) -> str:
    return f"rows-{teacher_name}-{split}"


def _cut_counter(teacher_name: str) -> str:
    return f"cut-{teacher_name}"

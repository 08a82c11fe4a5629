"""What the processes of a run have done, counted together and told to a reporter."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from cusa.precompute.processes import RunProcesses
from cusa.precompute.run_options import RunReporter
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teacher_loading import LoadedTeacher


class RunProgress:
    """The progress of a run.

    Args:
        processes: The processes, which share their counters.
        reporter: Told what happens.
        check_stop: Called after each batch and while waiting; raises to stop.
    """

    def __init__(
        self,
        processes: RunProcesses,
        reporter: RunReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._processes = processes
        self._reporter = reporter
        self._check_stop = check_stop

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
            finished: Those that an earlier run made.
            teachers: The loaded teachers, by name.
            folder: Where shards are written.
        """
        n_rows: Counter[tuple[str, str]] = Counter()
        n_finished: Counter[tuple[str, str]] = Counter()
        n_bytes = 0
        for task in tasks:
            n_rows[task.teacher, task.split] += task.n_rows
            if task in finished:
                n_finished[task.teacher, task.split] += task.n_rows
            else:
                n_bytes += task.n_rows * teachers[task.teacher].bytes_per_row
        for key, n_planned in n_rows.items():
            teacher_name, split = key
            self._reporter.planned(teacher_name, split, n_planned, n_finished[key])

        n_free = shutil.disk_usage(folder).free
        if n_free < n_bytes:
            self._reporter.note(
                f"{n_bytes / 1e9:,.1f} GB are to be written, {folder} has {n_free / 1e9:,.1f} GB "
                "left"
            )

    def advance(self, task: ShardTask, n_rows: int) -> None:
        """Count rows of a shard that are done, and report those of all processes."""
        n_done = self._processes.add(_row_counter(task.teacher, task.split), n_rows)
        self._reporter.advanced(task.teacher, task.split, n_done, task.path.name)
        self._check_stop()

    def follow_others(self, tasks: Sequence[ShardTask]) -> None:
        """Report the rows of all processes while this one waits for the others."""
        keys = dict.fromkeys((task.teacher, task.split) for task in tasks)
        for teacher_name, split in keys:
            n_done = self._processes.add(_row_counter(teacher_name, split), 0)
            self._reporter.advanced(teacher_name, split, n_done, "")
        self._check_stop()

    def cut_counter(self, teacher_name: str) -> Callable[[int], int]:
        """Return what counts the captions that are cut for a teacher."""
        return partial(self._processes.add, _cut_counter(teacher_name))

    def report_cut_captions(
        self,
        teacher_name: str,
        token_limit: int | None,
    ) -> None:
        """Report how many captions all processes cut for a teacher."""
        n_captions = self._processes.add(_cut_counter(teacher_name), 0)
        if n_captions:
            self._reporter.note(
                f"{teacher_name}: captions longer than its {token_limit} tokens that were cut: "
                f"{n_captions:,}"
            )


def _row_counter(teacher_name: str, split: str) -> str:
    return f"rows-{teacher_name}-{split}"


def _cut_counter(teacher_name: str) -> str:
    return f"cut-{teacher_name}"

"""The output of ``cusa-precompute``: its progress, its outcome, and the table of ``--plan``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from cusa.cli.console import print_plain

if TYPE_CHECKING:
    # These import torch, which would delay the report of a mistyped option.
    from cusa.data.records import Dataset
    from cusa.precompute.estimate import Estimate
    from cusa.precompute.run import Outcome
    from cusa.precompute.run_options import RunOptions


@dataclass
class _RowCount:
    """Rows of a teacher for a split: finished before this run, made in it, and all."""

    before: int
    now: int
    total: int


class BarReporter:
    """Shows a run as progress bars.

    Args:
        progress_bar: The progress.
        screen: Where notes are printed.
    """

    def __init__(self, progress_bar: Progress, screen: Console) -> None:
        self._bar = progress_bar
        self._screen = screen
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._counts: dict[tuple[str, str], _RowCount] = {}
        self._loading: TaskID | None = None

    def loading(self, teacher: str) -> None:
        """Show that a teacher's weights are being loaded."""
        self._loading = self._bar.add_task(f"{teacher}: loading", total=None)

    def loaded(self) -> None:
        """Show that the weights are loaded."""
        if self._loading is not None:
            self._bar.remove_task(self._loading)
            self._loading = None

    def planned(self, teacher: str, split: str, n_rows: int, n_done: int) -> None:
        """Add a bar for the rows of a teacher for a split."""
        task = self._bar.add_task(f"{teacher} {split}", total=n_rows, completed=n_done)
        self._tasks[teacher, split] = task
        self._counts[teacher, split] = _RowCount(before=n_done, now=0, total=n_rows)

    def advanced(self, teacher: str, split: str, n_done: int, file: str) -> None:
        """Show the rows that all processes together have made in this run."""
        task = self._tasks.get((teacher, split))
        if task is None:
            return
        count = self._counts[teacher, split]
        count.now = n_done
        completed = count.before + count.now
        # After the last row, there is no current shard to show.
        status = file if completed < count.total else ""
        self._bar.update(task, completed=completed, status=status)

    def note(self, message: str) -> None:
        """Print something that the user should know."""
        print_labelled(self._screen, "[yellow]note:[/]", message)

    def fault(self, message: str) -> None:
        """Print an image or a caption that cannot be used."""
        print_labelled(self._screen, "[red]fault:[/]", message)

    def progress(self) -> str:
        """Describe how far the run got."""
        counts = self._counts.values()
        n_rows = sum(count.total for count in counts)
        if not n_rows:
            return "no row was encoded yet"
        n_done = sum(count.before + count.now for count in counts)
        return f"{n_done:,} of {n_rows:,} rows are encoded; finished shards are kept"


def print_labelled(screen: Console, label: str, message: str) -> None:
    """Print a label, which may have markup, and a message, whose brackets are kept."""
    screen.print(f"{label} {escape(message)}", highlight=False, soft_wrap=True)


def print_outcome(screen: Console, outcome: Outcome, index_path: Path) -> None:
    """Print the rows that a run made, and the next command.

    Args:
        screen: Where to print.
        outcome: The run's outcome.
        index_path: The store's index.
    """
    from cusa.precompute.next_step import merging_command, training_command

    for teacher, teacher_entry in outcome.entries.items():
        n_skipped = 0
        split_counts = []
        for split, shards in teacher_entry.shards.items():
            n_rows = sum(shard.stop - shard.start for shard in shards)
            n_skipped += sum(len(shard.skipped) for shard in shards)
            split_counts.append(f"{split} {n_rows:,}")
        rows = f"{', '.join(split_counts)} rows x {teacher_entry.settings.dim}"
        print_plain(f"{teacher}: {rows}, {n_skipped:,} skipped", screen)

    # With --shard-range, the index written is that of a part.
    if outcome.index != index_path:
        print_plain(f"part: {outcome.index}", screen)
        print_plain(f"next, with all parts: {merging_command(index_path)}", screen)
        return
    print_plain(f"store: {index_path}", screen)
    command = training_command(index_path, outcome.entries)
    if command:
        print_plain(f"next: {command}", screen)


def print_plan(
    screen: Console,
    estimates: Sequence[Estimate],
    dataset: Dataset,
    options: RunOptions,
    processes: int,
) -> None:
    """Print the rows, shards, disk space and time that a run would take.

    Args:
        screen: Where to print.
        estimates: One per teacher, in the order of their shards.
        dataset: The data set.
        options: The run's settings.
        processes: Number of processes.
    """
    first_shard = options.shard_range[0] if options.shard_range else 0
    screen.print(_estimates_table(estimates, first_shard, processes))
    folder = options.out.resolve().parent
    while not folder.exists():
        folder = folder.parent
    n_free = shutil.disk_usage(folder).free
    n_bytes = sum(estimate.n_bytes for estimate in estimates)
    total_s = sum(_seconds(estimate, processes) for estimate in estimates)
    print_plain(
        f"disk: {n_bytes / 1e9:,.3f} GB of rows, {n_free / 1e9:,.1f} GB free in {folder}\n"
        f"time: about {_duration(total_s)} in {processes} process(es)",
        screen,
    )
    n_pairs = sum(len(record.captions) for record in dataset.splits.get("train", ()))
    if n_pairs:
        # Without a store, an epoch runs every teacher on every pair; with one, it reads their rows.
        epoch_s = sum(n_pairs / estimate.rates.encoding for estimate in estimates)
        pair_bytes = sum(estimate.n_bytes / estimate.n_rows for estimate in estimates)
        print_plain(
            f"saved per training epoch: {_duration(epoch_s)} of teachers on {n_pairs:,} pairs, "
            f"for reading {n_pairs * pair_bytes / 1e6:,.1f} MB",
            screen,
        )


def _estimates_table(estimates: Sequence[Estimate], first_shard: int, processes: int) -> Table:
    table = Table("teacher", "rows", "shards", "MB on disk", "rows/s", "teacher alone", "time")
    for estimate in estimates:
        stop_shard = first_shard + estimate.n_shards
        table.add_row(
            escape(estimate.teacher),
            f"{estimate.n_rows:,}",
            f"{estimate.n_shards:,} ({first_shard}:{stop_shard})",
            f"{estimate.n_bytes / 1e6:,.1f}",
            f"{estimate.rates.whole:,.0f}",
            f"{estimate.rates.encoding:,.0f}",
            _duration(_seconds(estimate, processes)),
        )
        first_shard = stop_shard
    return table


def _seconds(estimate: Estimate, processes: int) -> float:
    return estimate.n_rows / estimate.rates.whole / processes


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"

"""The output of ``cusa-precompute``: its progress, its outcome, and the table of ``--plan``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from cusa.cli.console import console, print_plain
from cusa.precompute.run_record import RunRecord

if TYPE_CHECKING:
    # These import torch, which would delay the report of a mistyped option.
    from cusa.precompute.estimate import Estimate
    from cusa.stages.precompute import Plan
    from cusa.stages.precomputed_store import PrecomputedStore


class BarReporter(RunRecord):
    """Shows a run as progress bars, and keeps what it reports.

    Args:
        progress_bar: The progress.
        screen: Where notes are printed.
    """

    def __init__(self, progress_bar: Progress, screen: Console) -> None:
        super().__init__()
        self._bar = progress_bar
        self._screen = screen
        self._tasks: dict[tuple[str, str], TaskID] = {}
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
        super().planned(teacher, split, n_rows, n_done)
        description = f"{teacher} {split}"
        task = self._bar.add_task(description, total=n_rows, completed=n_done, unit=self.unit)
        self._tasks[teacher, split] = task

    def advanced(self, teacher: str, split: str, n_done: int, file: str) -> None:
        """Show the rows that all processes together have made in this run."""
        super().advanced(teacher, split, n_done, file)
        task = self._tasks.get((teacher, split))
        if task is None:
            return
        count = self.counts[teacher, split]
        completed = count.before + count.now
        # After the last row, there is no current shard to show.
        status = file if completed < count.total else ""
        self._bar.update(task, completed=completed, status=status)

    def note(self, text: str) -> None:
        """Print something that the user should know."""
        super().note(text)
        print_labelled(self._screen, "[yellow]note:[/]", text)

    def fault(self, text: str) -> None:
        """Print an image or a caption that cannot be used."""
        super().fault(text)
        print_labelled(self._screen, "[red]fault:[/]", text)


def print_labelled(screen: Console, label: str, message: str) -> None:
    """Print a label, which may have markup, and a message, whose brackets are kept."""
    screen.print(f"{label} {escape(message)}", highlight=False, soft_wrap=True)


def print_outcome(store: PrecomputedStore) -> None:
    """Print the rows that a run made, and the next command."""
    from cusa.precompute.next_step import merging_command, training_command

    for teacher, teacher_rows in store.teachers.items():
        split_counts = [f"{split} {n_rows:,}" for split, n_rows in teacher_rows.rows.items()]
        n_skipped = sum(teacher_rows.skipped.values())
        n_rows_by_split = ", ".join(split_counts)
        print_plain(
            f"{teacher}: {n_rows_by_split} rows x {teacher_rows.dim}, {n_skipped:,} skipped"
        )

    if store.part_of is not None:
        print_plain(f"part: {store.path}")
        print_plain(f"next, with all parts: {merging_command(store.part_of)}")
        return
    print_plain(f"store: {store.path}")
    command = training_command(store.path, store.teachers)
    if command:
        print_plain(f"next: {command}")


def print_plan(plan: Plan) -> None:
    """Print the rows, shards, disk space and time that a run would take."""
    shard_range = plan.options.shard_range
    first_shard = shard_range[0] if shard_range else 0
    console().print(_estimates_table(plan.estimates, first_shard, plan.processes))
    folder = plan.options.out.resolve().parent
    while not folder.exists():
        folder = folder.parent
    n_free = shutil.disk_usage(folder).free
    n_bytes = sum(estimate.n_bytes for estimate in plan.estimates)
    total_s = sum(_seconds(estimate, plan.processes) for estimate in plan.estimates)
    print_plain(
        f"disk: {n_bytes / 1e9:,.3f} GB of rows, {n_free / 1e9:,.1f} GB free in {folder}\n"
        f"time: about {_duration(total_s)} in {plan.processes} process(es)"
    )
    n_pairs = sum(len(record.captions) for record in plan.dataset.splits.get("train", ()))
    if n_pairs:
        # Without a store, an epoch runs every teacher on every pair; with one, it reads their rows.
        epoch_s = sum(n_pairs / estimate.rates.encoding for estimate in plan.estimates)
        pair_bytes = sum(estimate.n_bytes / estimate.n_rows for estimate in plan.estimates)
        print_plain(
            f"saved per training epoch: {_duration(epoch_s)} of teachers on {n_pairs:,} pairs, "
            f"for reading {n_pairs * pair_bytes / 1e6:,.1f} MB"
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

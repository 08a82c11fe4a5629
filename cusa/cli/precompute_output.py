"""The output of ``cusa-precompute``: its outcome, and the table of ``--plan``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cusa.data.objects.folder import is_remote
from cusa.screen.console import console, print_plain

if TYPE_CHECKING:
    # These import torch, which would delay the report of a mistyped option.
    from cusa.precompute.estimate import Estimate
    from cusa.stages.precompute import Plan
    from cusa.stages.precomputed_store import PrecomputedStore


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
    print_disk(plan.estimates, plan.options.out.parent)
    total_s = sum(estimate.seconds for estimate in plan.estimates) / plan.processes
    print_plain(f"time: about {duration(total_s)} in {plan.processes} process(es)")
    n_pairs = sum(len(record.captions) for record in plan.dataset.splits.get("train", ()))
    if n_pairs:
        # Without a store, an epoch runs every teacher on every pair; with one, it reads their rows.
        epoch_s = sum(n_pairs / estimate.rates.encoding for estimate in plan.estimates)
        pair_bytes = sum(estimate.n_bytes / estimate.n_rows for estimate in plan.estimates)
        print_plain(
            f"saved per training epoch: {duration(epoch_s)} of teachers on {n_pairs:,} pairs, "
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
            duration(estimate.seconds / processes),
        )
        first_shard = stop_shard
    return table


def print_disk(
    estimates: Sequence[Estimate],
    folder: Path,
) -> None:
    """Print how many bytes the rows take, and how many are free.

    Args:
        estimates: The work of each teacher.
        folder: Where rows will be; of an object store, free bytes are not known.
    """
    n_bytes = sum(estimate.n_bytes for estimate in estimates)
    line = f"disk: {n_bytes / 1e9:,.3f} GB of rows"
    if not is_remote(folder):
        folder = folder.resolve()
        while not folder.exists():
            folder = folder.parent
        n_free = shutil.disk_usage(folder).free
        line += f", {n_free / 1e9:,.1f} GB free in {folder}"
    print_plain(line)


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"

"""The output of commands on sets of WebDataset tars."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cusa.cli.precompute_output import duration, print_disk
from cusa.data.objects.folder import location_text
from cusa.screen.console import console, print_plain

if TYPE_CHECKING:
    # This imports numpy and h5py, which would delay the report of a mistyped option.
    from cusa.data.tars.manifest import Manifest
    from cusa.precompute.estimate import Estimate
    from cusa.stages.precompute_tars import TarPlan

_SHOWN_RANGES = 8
# Numbers of jobs that a plan divides the tars among.
_ARRAYS = (4, 16, 64, 256, 1024)


def print_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Print what a set of tars holds.

    Args:
        folder: Path or URL of the folder of the set.
        manifest: Its manifest.
    """
    counts = {name: int(count.sum()) for name, count in manifest.counts.items()}
    print_plain(
        f"{manifest.n_tars:,} tars: {counts['n_images']:,} images, {counts['n_captions']:,} "
        f"captions, {counts['n_left_out']:,} samples left out"
    )
    n_damaged = manifest.n_tars - int(manifest.is_complete.sum())
    if n_damaged:
        print_plain(f"{n_damaged:,} tars were damaged; their whole samples are kept")
    for teacher_name, rows in manifest.teachers.items():
        counted = "n_images" if rows.settings.modality == "image" else "n_captions"
        n_skipped = int(rows.n_skipped.sum())
        print_plain(
            f"{teacher_name}: {counts[counted]:,} rows x {rows.settings.dim}, {n_skipped:,} skipped"
        )
    print_plain(f"set: {location_text(os.fspath(folder))}")


def print_missing(
    tars: Sequence[Path],
    manifest: Manifest,
) -> None:
    """Print which tars have no rows, as the option of the run that would make them.

    Args:
        tars: All tars of the set, sorted by name.
        manifest: The set's manifest.
    """
    from cusa.data.tars.pairs import name_of_tar

    finished_names = set(manifest.names)
    ranges: list[list[int]] = []
    n_missing = 0
    for number, tar in enumerate(tars):
        if name_of_tar(tar) in finished_names:
            continue
        n_missing += 1
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    if not n_missing:
        return
    options = [f"--tars {first}:{stop}" for first, stop in ranges[:_SHOWN_RANGES]]
    if len(ranges) > _SHOWN_RANGES:
        options.append("...")
    print_plain(f"{n_missing:,} of {len(tars):,} tars have no rows: {', '.join(options)}")


def print_tar_plan(plan: TarPlan) -> None:
    """Print the tars, rows, disk space and time that a run over tars would take."""
    estimate = plan.estimate
    n_pending = estimate.n_tars - estimate.n_done
    print_plain(f"{estimate.n_tars:,} tars, {estimate.n_done:,} of them done")
    if not n_pending:
        return
    left_out = ""
    if estimate.n_left_out:
        left_out = f"; {estimate.n_left_out:,} samples of these tars are left out"
    print_plain(
        f"a tar: about {estimate.images.mean():,.0f} images ({estimate.images.min():,} to "
        f"{estimate.images.max():,} in {len(estimate.images)} tars that were read) and "
        f"{estimate.captions.mean():,.0f} captions{left_out}"
    )
    console().print(_tar_estimates_table(estimate.teachers, plan.processes))
    print_disk(estimate.teachers, plan.folder)
    seconds_per_tar = estimate.seconds / n_pending
    total_s = estimate.seconds / plan.processes
    print_plain(
        f"time: about {duration(total_s)} in {plan.processes} process(es), "
        f"{duration(seconds_per_tar)} a tar; reading a tar takes {duration(estimate.reading_s)} of "
        "it"
    )
    arrays: list[str] = []
    for n_jobs in _ARRAYS:
        if n_jobs <= n_pending:
            tars_of_job = math.ceil(n_pending / n_jobs)
            job_s = duration(tars_of_job * seconds_per_tar)
            arrays.append(f"{n_jobs:,} jobs: {tars_of_job:,} tars and {job_s} each")
    if arrays:
        print_plain(f"as an array of such processes: {'; '.join(arrays)}")


def _tar_estimates_table(
    estimates: Sequence[Estimate],
    processes: int,
) -> Table:
    table = Table(
        "teacher", "tars", "rows", "MB a tar", "MB on disk", "rows/s", "teacher alone", "time"
    )
    for estimate in estimates:
        bytes_per_tar = estimate.n_bytes / max(1, estimate.n_shards)
        table.add_row(
            escape(estimate.teacher),
            f"{estimate.n_shards:,}",
            f"{estimate.n_rows:,}",
            f"{bytes_per_tar / 1e6:,.2f}",
            f"{estimate.n_bytes / 1e6:,.1f}",
            f"{estimate.rates.whole:,.0f}",
            f"{estimate.rates.encoding:,.0f}",
            duration(estimate.seconds / processes),
        )
    return table

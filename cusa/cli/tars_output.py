"""The output of commands on sets of WebDataset tars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cusa.data.objects.folder import location_text
from cusa.screen.console import print_plain

if TYPE_CHECKING:
    # This imports numpy and h5py, which would delay the report of a mistyped option.
    from cusa.data.tars.manifest import Manifest

_SHOWN_RANGES = 8


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

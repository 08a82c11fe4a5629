"""The output of commands on sets of WebDataset tars."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cusa.data.objects.folder import location_text
from cusa.screen.console import print_plain

if TYPE_CHECKING:
    # This imports numpy and h5py, which would delay the report of a mistyped option.
    from cusa.data.tars.manifest import Manifest


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

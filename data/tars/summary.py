"""A summary of a tar set, for ``cusa-store info``: its manifest, and a listing of its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import CusaError, DataError, SettingError
from cusa.data.objects.folder import is_remote, location_text
from cusa.data.tars.manifest import Manifest, TarRows, read_manifest
from cusa.data.tars.pairs import name_of_tar
from cusa.data.tars.paths import expand_tars
from cusa.data.tars.set_files import PAIRS_FOLDER, SetFiles
from cusa.data.tars.units import unit_suffix


def summarize_set(location: str | Path) -> dict[str, Any]:
    """Summarise a set as a JSON-compatible dictionary; neither pairs nor rows are read.

    Args:
        location: Path or URL of the folder of the set.

    Raises:
        StoreError: If the manifest is missing or damaged.
        ObjectError: If the object store does not give it.
    """
    manifest = read_manifest(location)
    files = SetFiles(location)
    totals = {name: int(count.sum()) for name, count in manifest.counts.items()}
    damaged_tars = list(compress(manifest.names, ~manifest.is_complete))
    teachers: dict[str, Any] = {}
    for teacher_name, rows in manifest.teachers.items():
        teachers[teacher_name] = _teacher_summary(rows, totals)
    return {
        "set": str(files),
        "image_root": manifest.image_root,
        "caption": manifest.caption_rule,
        "tars": manifest.n_tars,
        "images": totals["n_images"],
        "captions": totals["n_captions"],
        "left_out": totals["n_left_out"],
        "tar_bytes": totals["tar_bytes"],
        "damaged_tars": damaged_tars,
        "not_indexed": sorted(set(files.tars()).difference(manifest.names)),
        "missing_files": _missing_files(manifest, files),
        "tars_without_rows": _tars_without_rows(manifest, files),
        "teachers": teachers,
    }


def require_tars_of(
    manifest: Manifest,
    location: Path,
    tars: Sequence[Path],
) -> None:
    """Refuse tars that are not those of a set; others than the set's may be among them.

    Args:
        manifest: The set's manifest.
        location: Path or URL of the folder of the set, as errors name it.
        tars: The tars.

    Raises:
        SettingError: If none of the set is among them.
        DataError: If one of the set is not there.
    """
    suffix = unit_suffix(manifest.caption_rule)
    own_files = {f"{name}{suffix}" for name in manifest.names}
    own_tars = [tar for tar in tars if tar.name in own_files]
    if not own_tars:
        raise SettingError(
            f"--dataset names no {suffix} of {location_text(location)}; pass those that its rows "
            "were made from",
            path=location,
            name="dataset",
        )
    for tar in own_tars:
        if not is_remote(tar) and not tar.is_file():
            raise DataError(f"{tar} does not exist; check --dataset", path=tar, name=tar.stem)


def _teacher_summary(
    rows: TarRows,
    totals: dict[str, int],
) -> dict[str, Any]:
    settings = rows.settings
    n_rows = totals["n_images"]
    if settings.modality == "text":
        n_rows = totals["n_captions"]
    return {
        **asdict(settings),
        "source": rows.source,
        "rows": n_rows,
        "skipped": int(rows.n_skipped.sum()),
        "bytes": n_rows * settings.dim * np.dtype(settings.dtype).itemsize,
    }


def _missing_files(
    manifest: Manifest,
    files: SetFiles,
) -> list[str]:
    """Return the files that the manifest names and the folder does not have."""
    missing: list[str] = []
    for folder in (PAIRS_FOLDER, *manifest.teachers):
        named = {f"{folder}/{name}.h5" for name in manifest.names}
        missing += sorted(named - files.listing)
    return missing


def _tars_without_rows(
    manifest: Manifest,
    files: SetFiles,
) -> list[str] | None:
    """Return the tars beside those of the set; ``None`` if their folder is not there."""
    image_root = manifest.image_root
    suffix = unit_suffix(manifest.caption_rule)
    if is_remote(image_root):
        try:
            tars = expand_tars([f"{image_root}/*{suffix}"])
        except CusaError:
            return None
    elif os.path.isdir(image_root):
        tars = list(Path(image_root).glob(f"[!.]*{suffix}"))
    else:
        return None
    return sorted(set(map(name_of_tar, tars)).difference(manifest.names, files.tars()))

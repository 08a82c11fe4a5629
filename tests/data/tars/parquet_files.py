"""Parquet files with the bytes of images, made here."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.tars.tar_files import jpeg


def rows_of(numbers):
    """The rows of some pictures, as img2dataset writes them."""
    rows = []
    for number in numbers:
        caption = f"picture number {number % 50}"
        rows.append({"key": f"{number:06d}", "jpg": jpeg(number), "caption": caption})
    return rows


def write_parquet(path: Path, rows, row_group_size=2, schema=None) -> Path:
    """Write a Parquet file of some rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=row_group_size)
    return path


def write_parquet_units(folder: Path, n_files: int, n_pairs: int) -> list[Path]:
    """Write Parquet files of pairs that are numbered through, as write_tars writes tars."""
    paths = []
    for number in range(n_files):
        rows = rows_of(range(number * n_pairs, (number + 1) * n_pairs))
        paths.append(write_parquet(folder / f"{number:05d}.parquet", rows))
    return paths

"""Rows by id from an index of COCO's size, against a dictionary of all ids; and what it costs.

    python benchmarks/rows_by_id.py --out benchmarks/results/rows_by_id.json

Batches of 128 random caption ids: `Split.caption_rows` by the index's table of hashes, and a
dictionary that was made of all ids. The dictionary's time to be made, and the time to open an index
with and without the tables, which each process pays once, stand beside it. Medians of the rounds,
in which the ways take turns.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from pathlib import Path

import click
import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from cusa.data.records import Dataset, Record
from cusa.data.store.checksum import INDEX_FORMAT, write_sealed
from cusa.data.store.index import Index, write_index
from cusa.data.store.reader import EmbeddingStore

from timing import in_turns

SMOKE = ("--images 200 --rounds 2",)
BATCH = 128
CAPTIONS_PER_IMAGE = 5


def make_records(n_images: int) -> tuple[Record, ...]:
    """Images with five captions of some 50 characters each, ids as COCO's."""
    records = []
    for image in range(n_images):
        numbers = range(CAPTIONS_PER_IMAGE * image, CAPTIONS_PER_IMAGE * (image + 1))
        captions = tuple(f"A photograph of the things that number {n} names." for n in numbers)
        caption_ids = tuple(str(700_000 + n) for n in numbers)
        path = f"train2014/COCO_train2014_{image:012d}.jpg"
        records.append(Record(str(image), path, captions, caption_ids))
    return tuple(records)


def without_tables(index_path: Path, copy_path: Path) -> None:
    """Copy an index without its tables of hashes, as earlier versions wrote it."""

    def copy_group(source: h5py.Group, copy: h5py.Group) -> None:
        for name, value in source.attrs.items():
            copy.attrs[name] = value
        for name, child in source.items():
            if name == "lookup":
                continue
            if isinstance(child, h5py.Group):
                copy_group(child, copy.create_group(name))
            else:
                copy.create_dataset(name, data=child[()])

    def fill(file: h5py.File) -> None:
        with h5py.File(index_path) as whole:
            copy_group(whole, file)

    write_sealed(copy_path, INDEX_FORMAT, fill)


@click.command()
@click.option("--images", type=click.IntRange(1), default=113_287, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=101, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(images: int, rounds: int, out: Path | None) -> None:
    """Measure, print a table, write the figures to --out."""
    with tempfile.TemporaryDirectory() as folder:
        index_path = Path(folder) / "store.h5"
        copy_path = Path(folder) / "without.h5"
        dataset = Dataset("made-up", Path(folder), {"train": make_records(images)})
        write_index(index_path, Index.from_dataset(dataset, {}))
        without_tables(index_path, copy_path)
        sizes = {"with tables": index_path.stat().st_size, "without": copy_path.stat().st_size}

        split = EmbeddingStore(index_path).split("train")
        ids = split.caption_ids[:]
        rows_of_ids = {caption_id: row for row, caption_id in enumerate(ids)}
        rng = np.random.default_rng(0)

        def some_ids() -> list[str]:
            return [ids[row] for row in rng.integers(0, len(ids), BATCH).tolist()]

        ways = {
            "caption_rows": lambda: split.caption_rows(some_ids()),
            "dictionary of all ids": lambda: [rows_of_ids[name] for name in some_ids()],
            "making the dictionary": lambda: dict.fromkeys(split.caption_ids[:], 0),
            "open, with tables": lambda: EmbeddingStore(index_path),
            "open, without": lambda: EmbeddingStore(copy_path),
        }
        taken = in_turns(ways, rounds)
    milliseconds = {name: 1e3 * statistics.median(times) for name, times in taken.items()}
    table = Table("way", "ms", title=f"{images:,} images, {CAPTIONS_PER_IMAGE * images:,} captions")
    for name, time_ms in milliseconds.items():
        table.add_row(name, f"{time_ms:.3f}")
    Console().print(table)
    figures = {"machine": platform.platform(), "images": images, "rounds": rounds}
    figures |= {"milliseconds": milliseconds, "index_bytes": sizes}
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

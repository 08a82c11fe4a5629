"""Opening, info and random reads on a store of 100 million rows, against one of ten thousand.

    python benchmarks/scale.py --out benchmarks/results/scale.json

The large store is made of sparse files (its rows are zeros that take no room on disk) with the
structure of real ones. Each measurement is made in a fresh process; medians.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from cusa.data.store.checksum import INDEX_FORMAT, SHARD_FORMAT, VERSION
from cusa.data.store.reader import VERIFIED_BYTES
from cusa.data.store.schema import (
    SHARD_ROWS,
    TeacherSettings,
    shard_folder,
    shard_name,
    shard_ranges,
)
from cusa.data.store.split_table import COLUMNS, write_texts
from cusa.data.texts import Texts

SMOKE = ("--rows 20000 --rounds 1",)
DIM = 768
SETTINGS = TeacherSettings("image", "made up", "0" * 64, {}, "none", "fp32", DIM, "float16", True)


def sparse(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A contiguous dataset whose room is claimed and never written."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(
        group.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, dcpl=properties
    )


def seal(path: Path, form: str) -> None:
    """Put the first block before a file made with room for it.

    The checksum is that of the file where opening verifies it; of longer ones and of shards it is
    made up, nobody reads so much here.
    """
    checksum = "0" * 64
    with path.open("r+b") as file:
        if form == INDEX_FORMAT and path.stat().st_size <= VERIFIED_BYTES:
            file.seek(512)
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        line = f"{form} {VERSION[0]}.{VERSION[1]} sha256={checksum}\n".encode()
        file.seek(0)
        file.write(line.ljust(512, b"\0"))


def make_sparse(index: Path, n: int) -> None:
    """A store of n image rows and n captions."""
    listing = []
    for start, stop in shard_ranges(n, SHARD_ROWS):
        name = shard_name("t", "train", start, stop)
        path = shard_folder(index) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w", userblock_size=512) as file:
            file.attrs["format"] = SHARD_FORMAT
            file.attrs["teacher"], file.attrs["split"], file.attrs["split_fingerprint"] = (
                "t",
                "train",
                "f",
            )
            file.attrs["start"], file.attrs["stop"], file.attrs["settings"] = (
                start,
                stop,
                SETTINGS.to_json(),
            )
            sparse(file, "rows", (stop - start, DIM), "<f2")
            file.create_dataset("skipped", data=np.zeros(0, "<i8"))
            offset = file["rows"].id.get_offset()
        seal(path, SHARD_FORMAT)
        listing.append((start, stop, offset, f"{shard_folder(index).name}/{name}"))
    with h5py.File(index, "w", userblock_size=512) as file:
        file.attrs["format_version"] = np.asarray(VERSION, "<i4")
        file.attrs["dataset"], file.attrs["image_root"] = "made up", "."
        split = file.create_group("splits/train")
        split.attrs["fingerprint"] = "f"
        for name in COLUMNS:
            sparse(split.create_group(name), "bytes", (60 * n,), "u1")
            sparse(split[name], "offsets", (n + 1,), "<i8")
        sparse(split, "caption_image", (n,), "<i8")
        teacher = file.create_group("teachers/t")
        teacher.attrs["settings"], teacher.attrs["source"] = SETTINGS.to_json(), "made up"
        part = teacher.create_group("train")
        shards = part.create_group("shards")
        shards.create_dataset("bounds", data=np.asarray([(a, b) for a, b, _, _ in listing], "<i8"))
        shards.create_dataset(
            "offsets", data=np.asarray([offset for _, _, offset, _ in listing], "<i8")
        )
        write_texts(shards, "files", Texts.from_strings(file for *_, file in listing))
        write_texts(shards, "sha256", Texts.from_strings("0" * 64 for _ in listing))
        part.create_dataset("skipped", data=np.zeros(0, "<i8"))
    seal(index, INDEX_FORMAT)


def _fresh(measure: Callable[[Path], dict[str, float]], index: Path, answer: Any) -> None:
    import cusa.data.store.reader
    import cusa.data.store.summary  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = measure(index)
    found["MiB more at the peak"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ) / 1024
    answer.put(found)


def opening(index: Path) -> dict[str, float]:
    """Open the store and the rows of a teacher; read one caption."""
    from cusa.data.store.reader import EmbeddingStore

    began = time.perf_counter()
    store = EmbeddingStore(index)
    store.embeddings("t", "train")
    _ = store.split("train").captions[5_000]
    return {"open, ms": 1e3 * (time.perf_counter() - began)}


def info(index: Path) -> dict[str, float]:
    """What cusa-store info does."""
    from cusa.data.store.summary import summarize

    began = time.perf_counter()
    summarize(index)
    return {"info, ms": 1e3 * (time.perf_counter() - began)}


def reading(index: Path) -> dict[str, float]:
    """The first batch of 128 random rows, and one of the many after it."""
    from cusa.data.store.reader import EmbeddingStore

    rows = EmbeddingStore(index).embeddings("t", "train")
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    rows.gather(rng.integers(0, len(rows), 128))
    first = time.perf_counter() - began
    began = time.perf_counter()
    rows.gather(rng.integers(0, len(rows), 4 * rows.n_shards))
    rows.gather(np.arange(0, len(rows), SHARD_ROWS))  # a row of every shard
    mapping = time.perf_counter() - began
    # The same 20,000 rows again and again, so that both stores read what is in memory.
    known = rng.integers(0, len(rows), 20_000)
    rows.gather(known)
    batches = [known[rng.integers(0, len(known), 128)] for _ in range(2000)]
    began = time.perf_counter()
    for batch in batches:
        rows.gather(batch)
    later = (time.perf_counter() - began) / len(batches)
    return {
        "first 128 rows, ms": 1e3 * first,
        "mapping all shards, ms": 1e3 * mapping,
        "128 rows later, us": 1e6 * later,
    }


@click.command()
@click.option("--rows", default=100_000_000)
@click.option("--rounds", default=5)
@click.option("--out", type=click.Path(path_type=Path))
def main(rows: int, rounds: int, out: Path | None) -> None:
    """Measure, print a table, write the figures to --out."""
    context = get_context("spawn")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        stores = {str(n): Path(name) / f"{n}.h5" for n in (10_000, rows)}
        for n, index in stores.items():
            make_sparse(index, int(n))
        runs: dict[str, dict[str, list[float]]] = {n: {} for n in stores}
        for _ in range(rounds):
            for n, index in stores.items():
                for measure in (opening, info, reading):
                    answer = context.Queue()
                    process = context.Process(target=_fresh, args=(measure, index, answer))
                    process.start()
                    for what, value in answer.get().items():
                        key = f"{measure.__name__}: {what}" if what.startswith("MiB") else what
                        runs[n].setdefault(key, []).append(value)
                    process.join()
        found = {n: {k: statistics.median(v) for k, v in of.items()} for n, of in runs.items()}
        shards = len(list(shard_folder(stores[str(rows)]).rglob("*.h5")))
    table = Table("", "10,000 rows", f"{rows:,} rows ({shards:,} shards)")
    for what in found["10000"]:
        table.add_row(what, *(f"{found[n][what]:,.2f}" for n in found))
    Console(width=100).print(table)
    if out is not None:
        out.write_text(
            json.dumps({"machine": platform.platform(), "medians": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

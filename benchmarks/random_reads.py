"""Random rows from a store, against the other ways of keeping embeddings on disk; and the memory that readers hold.

    python benchmarks/random_reads.py --out benchmarks/results/random_reads.json

128 random rows at a time from arrays of COCO's size, in the page cache, from: this project's store, numpy's memory map
of a .npy, h5py (a contiguous dataset, and chunks of 1,024 rows), a pickled dictionary, safetensors. Medians over rounds
in which the ways take turns.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
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

from cusa.data.store.index import Index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import (
    SHARD_ROWS,
    TeacherSettings,
    shard_folder,
    shard_name,
    shard_ranges,
)
from cusa.data.store.shards import ShardHeader, write_shard
from cusa.data.store.split_table import SplitTable, Texts
from cusa.data.store.teacher_entry import TeacherEntry

SMOKE = ("--size 2000x8 --rounds 1 --readers 2",)
SIZES = ("566435x768", "113287x512")
BATCH = 128


def make_store(index: Path, rows: np.ndarray) -> None:
    """A store of one image teacher over made-up ids."""
    n, dim = rows.shape
    settings = TeacherSettings(
        "image", "made up", "0" * 64, {}, "none", "fp32", dim, "float16", True
    )
    shards = []
    for start, stop in shard_ranges(n, SHARD_ROWS):
        file = f"{shard_folder(index).name}/{shard_name('t', 'train', start, stop)}"
        header = ShardHeader("t", "train", "f", start, stop, settings)
        shards.append(write_shard(index.parent, file, header, rows[start:stop], []))
    ids = Texts.from_strings([str(i) for i in range(n)])
    columns = dict.fromkeys(("image_ids", "image_paths", "caption_ids", "captions"), ids)
    table = SplitTable("f", columns, np.arange(n), None)
    entry = TeacherEntry(settings, {"train": tuple(shards)})
    write_index(index, Index("made up", index.parent, {"train": table}, {"t": entry}))


def prepare(folder: Path, n: int, dim: int) -> None:
    """All files, of the same random rows."""
    rng = np.random.default_rng(0)
    rows = np.empty((n, dim), np.float16)
    for start in range(0, n, SHARD_ROWS):
        part = rows[start : start + SHARD_ROWS]
        part[...] = rng.standard_normal(part.shape, np.float32)
    make_store(folder / "store.h5", rows)
    np.save(folder / "rows.npy", rows)
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("contiguous", data=rows)
        file.create_dataset("chunked", data=rows, chunks=(1024, dim))
    with (folder / "rows.pickle").open("wb") as out:
        pickle.dump({i: row.copy() for i, row in enumerate(rows)}, out, protocol=4)
    from safetensors.numpy import save_file

    save_file({"rows": rows}, folder / "rows.safetensors")


def open_store(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """This project's reader."""
    return EmbeddingStore(folder / "store.h5").embeddings("t", "train").gather


def open_memmap(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Numpy's."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    return lambda numbers: rows[numbers]


def open_h5py(folder: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """h5py takes ascending numbers without repeats; the order asked for is restored."""
    rows = h5py.File(folder / "rows.h5")[name]

    def gather(numbers: np.ndarray) -> np.ndarray:
        ascending, places = np.unique(numbers, return_inverse=True)
        return rows[ascending][places]

    return gather


def open_pickle(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A dictionary from id to row, as the published code keeps them."""
    rows = pickle.loads((folder / "rows.pickle").read_bytes())
    return lambda numbers: np.stack([rows[i] for i in numbers.tolist()])


def open_safetensors(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Safetensors through torch, its fastest way: a mapped tensor and index_select."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(1)
    rows = safe_open(folder / "rows.safetensors", "pt").get_tensor("rows")
    return lambda numbers: rows.index_select(0, torch.from_numpy(numbers)).numpy()


WAYS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
    "EmbeddingStore.gather": (open_store, (), 1000),
    "numpy memmap of .npy": (open_memmap, (), 1000),
    "safetensors, index_select": (open_safetensors, (), 1000),
    "pickled dictionary": (open_pickle, (), 300),
    "h5py, contiguous": (open_h5py, ("contiguous",), 20),
    "h5py, 1,024-row chunks": (open_h5py, ("chunked",), 3),
}


def rates(folder: Path, n: int, rounds: int) -> dict[str, float]:
    """Median rows per second of every way."""
    rng = np.random.default_rng(1)
    gathers = {
        name: (opening(folder, *more), count) for name, (opening, more, count) in WAYS.items()
    }
    probe = rng.integers(0, n, BATCH)
    want = gathers["numpy memmap of .npy"][0](probe)
    for gather, count in gathers.values():
        np.testing.assert_array_equal(gather(probe), want)
        if count > 100:  # all pages in the cache and in the page tables; h5py has none of its own
            for start in range(0, n, BATCH):
                gather(np.arange(start, min(start + BATCH, n)))
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, (gather, count) in gathers.items():
            batches = [rng.integers(0, n, BATCH) for _ in range(count)]
            began = time.perf_counter()
            for batch in batches:
                gather(batch)
            found[name].append(BATCH * count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def _read(
    gather: Callable[[np.ndarray], np.ndarray] | None, n: int, seed: int, ready: Any, end: Any
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        if gather is not None:
            gather(rng.integers(0, n, BATCH))
    ready.release()
    end.wait()


def _memory(folder: Path, n: int, way: str | None, workers: int, answer: Any) -> None:
    """Anonymous memory of a process and its forked workers, all having read; shared pages are counted once."""
    context = get_context("fork")
    gather = None
    if way is not None:
        opening, more, _ = WAYS[way]
        gather = opening(folder, *more)
    ready, end = context.Semaphore(0), context.Event()
    processes = [
        context.Process(target=_read, args=(gather, n, seed, ready, end)) for seed in range(workers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    total = 0
    for pid in [os.getpid(), *(p.pid for p in processes)]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
    end.set()
    for process in processes:
        process.join()
    answer.put(total / 1024)


def memory(folder: Path, n: int, way: str | None, workers: int) -> float:
    """MiB, in a fresh process."""
    context = get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_memory, args=(folder, n, way, workers, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


@click.command()
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=SIZES,
    metavar="ROWSxDIM",
    help="Of an array; repeatable.",
)
@click.option("--rounds", default=11)
@click.option("--readers", default=8, help="Forked processes whose memory is taken.")
@click.option("--out", type=click.Path(path_type=Path))
def main(sizes: tuple[str, ...], rounds: int, readers: int, out: Path | None) -> None:
    """Measure, print a table, write the figures to --out."""
    results: dict[str, Any] = {"machine": platform.platform(), "numpy": np.__version__, "sizes": {}}
    for size in sizes:
        n, dim = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, n, dim)
            disk = sum(p.stat().st_size for p in folder.glob("store/**/*.h5"))
            speed = rates(folder, n, rounds)
            idle = memory(folder, n, None, readers)
            held = {
                w: memory(folder, n, w, readers) - idle
                for w in ("EmbeddingStore.gather", "pickled dictionary")
            }
        results["sizes"][f"{n}x{dim}"] = {
            "rows_per_s": speed,
            f"anonymous_mib_{readers}_workers": held,
            "shard_bytes_over_raw": disk / (n * dim * 2),
        }
        table = Table(
            "way",
            "rows/s",
            "ours / theirs",
            title=f"{n:,} x {dim} float16, {BATCH} random rows at a time",
        )
        ours = speed["EmbeddingStore.gather"]
        for way, rate in speed.items():
            table.add_row(way, f"{rate:,.0f}", f"{ours / rate:.2f}")
        Console(width=110).print(table)
        print(
            f"anonymous memory of a reader and {readers} workers, MiB:",
            {k: round(v, 1) for k, v in held.items()},
        )
        print(f"shards on disk / raw float16: {disk / (n * dim * 2):.5f}")
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

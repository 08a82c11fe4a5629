"""A full disk, and a flipped bit in every part of a store's files: is each caught and named?

    python benchmarks/damage.py --out benchmarks/results/damage.json

The disk is a small tmpfs, mounted here (needs root; otherwise that part says so and is left out).
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import h5py
from crash import contents, end_of, load_libraries, make_inputs, start

from cusa.data.errors import CusaError
from cusa.data.store.checksum import BLOCK
from cusa.data.store.index import read_index
from cusa.data.store.verify import verify

SMOKE = ("--bits 1 --disks 1",)
ROOT = Path(__file__).parent.parent


def precompute(args: list[str], log: Path) -> tuple[int, str]:
    """Run cusa-precompute in a process of its own; its status, and the last line that
    it printed.
    """
    log.unlink(missing_ok=True)
    (status,) = end_of([start(args, {}, log, None, log)], None, 0)
    return status, log.read_text().strip().splitlines()[-1]


def full_disk(
    folder: Path, args: Callable[[Path], list[str]], whole: dict[str, bytes], disks: int
) -> dict[str, Any]:
    """Let disks of several sizes fill, make room, run again, compare."""
    if os.geteuid() != 0:
        return {"left out": "mounting a tmpfs needs root"}
    total = sum(len(content) for content in whole.values())
    mount = folder / "disk"
    mount.mkdir()
    stopped, named, identical, sizes = 0, 0, 0, []
    for part in range(1, disks + 1):
        size = total * part // disks // 4096 * 4096
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
        try:
            status, last = precompute(args(mount / "store.h5"), folder / "log")
            sizes.append(size)
            stopped += status != 0 and not (mount / "store.h5").exists()
            named += (
                "cannot write" in last and "No space left on device" in last and str(mount) in last
            )
            subprocess.run(["mount", "-o", f"remount,size={8 * total}", mount], check=True)
            status, _ = precompute(args(mount / "store.h5"), folder / "log")
            identical += status == 0 and contents(mount) == whole
        finally:
            subprocess.run(["umount", mount], check=True)
    return {"sizes_bytes": sizes, "stopped": stopped, "named": named, "rerun_identical": identical}


def sections(path: Path) -> dict[str, list[int]]:
    """Bytes of a sealed file by section: first block, row data, other datasets, HDF5's own
    structures between them.
    """
    size, taken = path.stat().st_size, {}
    with h5py.File(path) as file:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and not item.is_virtual and item.size:
                first = item.id.get_offset()
                taken[name] = range(first, first + item.nbytes)

        file.visititems(visit)
    data = {byte for places in taken.values() for byte in places}
    found = {
        "first block": list(range(BLOCK)),
        **{f"dataset {name}": list(places) for name, places in taken.items()},
    }
    found["HDF5 structures"] = [byte for byte in range(BLOCK, size) if byte not in data]
    return found


def flipped_bits(index: Path, per_section: int) -> dict[str, Any]:
    """Flip bits in one shard and in the index, in every section, and let verify find the file."""
    rng = random.Random(0)
    shard = next(s for e in read_index(index).teachers.values() for s in e.shards["train"])
    found: dict[str, Any] = {}
    for kind, path in (("shard", index.parent / shard.file), ("index", index)):
        content = path.read_bytes()
        for section, places in sections(path).items():
            caught = 0
            chosen = rng.sample(places, min(per_section, len(places)))
            for place in chosen:
                changed = bytearray(content)
                changed[place] ^= 1 << rng.randrange(8)
                path.write_bytes(changed)
                try:
                    _, damages = verify(index)
                    named = [d for d in damages if d.path == path]
                    caught += len(damages) == len(named) == 1 and (
                        kind == "index" or "rows 0 to" in named[0].problem
                    )
                except CusaError as error:
                    caught += str(path) in str(error)
            path.write_bytes(content)
            found[f"{kind}: {section}"] = f"{caught} of {len(chosen)}"
    assert not verify(index)[1]
    return found


@click.command()
@click.option("--bits", default=64, help="Of each section.")
@click.option("--disks", default=8, help="That fill; equal steps up to the store's own size.")
@click.option("--out", type=click.Path(path_type=Path))
def main(bits: int, disks: int, out: Path | None) -> None:
    """Measure, print, write the figures to --out."""
    sys.path.insert(0, str(ROOT))
    load_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args = make_inputs(folder)
        status, last = precompute(args(folder / "whole" / "store.h5"), folder / "log")
        assert status == 0, last
        whole = contents(folder / "whole")
        shutil.copytree(folder / "whole", folder / "flips")
        results = {
            "machine": platform.platform(),
            "full disk": full_disk(folder, args, whole, disks),
            "flipped bits caught and named": flipped_bits(folder / "flips" / "store.h5", bits),
        }
    print(json.dumps(results, indent=1))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

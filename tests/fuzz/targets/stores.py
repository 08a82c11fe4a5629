"""Embedding stores: index, shards and lock. Whatever carries a checksum is read as it was written,
or refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cusa.data.errors import CusaError
from cusa.data.files import FolderLock
from cusa.data.records import Dataset, Truth
from cusa.data.store.checksum import BLOCK
from cusa.data.store.index import read_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import read_picture_digests, read_shard
from cusa.data.store.verify import verify
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_hdf5, on_path
from tests.helpers import add_teacher, records, settings, unit_rows

_DIM = 6
_SIZES = {"train": 5, "val": 3}
_SHARD = "store/vision/train-000000000-000000004.h5"


def _make_store(folder: Path) -> Path:
    """A store with two teachers, shards of four rows, skipped rows and known relevance;
    its index.
    """
    splits = {name: records(name, n) for name, n in _SIZES.items()}
    truth = {
        name: Truth(np.arange(n) // 2, np.arange(2 * n + 1), np.repeat(np.arange(n), 2))
        for name, n in _SIZES.items()
    }
    dataset = Dataset("made-up", folder, splits, truth)
    index = folder / "store.h5"
    images = {name: unit_rows(n, _DIM, seed=1) for name, n in _SIZES.items()}
    texts = {name: unit_rows(2 * n, _DIM, seed=2) for name, n in _SIZES.items()}
    add_teacher(
        index,
        dataset,
        "vision",
        settings("image", _DIM, dtype="float32"),
        images,
        shard_rows=4,
        skipped=(1,),
    )
    add_teacher(index, dataset, "words", settings("text", _DIM), texts, shard_rows=16)
    return index


def _make_shard(folder: Path) -> Path:
    _make_store(folder)
    return folder / _SHARD


def _read_store(index: Path) -> dict[str, Any]:
    """All that a store says, every shard's checksum compared."""
    store = EmbeddingStore(index)
    content: dict[str, Any] = {
        "dataset": store.dataset,
        "image_root": os.path.relpath(store.image_root, index.parent),
        "teachers": store.teachers,
        "sources": store.sources,
        "versions": store.versions,
    }
    for name, split in store.splits.items():
        truth = split.truth
        content[f"split {name}"] = (split.fingerprint, split[:], split.caption_image.tolist())
        content[f"truth {name}"] = (
            None if truth is None else [rows.tolist() for rows in vars(truth).values()]
        )
        content[f"skipped {name}"] = [rows.tolist() for rows in store.skipped(name)]
    for teacher in store.teachers:
        for name in store.splits_of(teacher):
            rows = store.embeddings(teacher, name)
            _gather_unverified(rows)
            rows.verify_shards()
            content[f"rows {teacher} {name}"] = np.asarray(rows).tobytes()
            content[f"pictures {teacher} {name}"] = rows.picture_digests().tobytes()
    return content


def _gather_unverified(rows: Any) -> None:
    """Read rows before their checksums are compared; of this no more is asked than one line."""
    with contextlib.suppress(CusaError):
        np.asarray(rows)
        rows.picture_digests()


def _read_store_of_shard(shard: Path) -> dict[str, Any]:
    return _read_store(shard.parents[2] / "store.h5")


def _read_by_id(index: Path) -> Any:
    """The rows of all ids, by the lookup tables of the index."""
    rows: dict[str, Any] = {}
    for name, split in EmbeddingStore(index).splits.items():
        rows[f"captions {name}"] = split.caption_rows(list(split.caption_ids)).tolist()
        rows[f"images {name}"] = split.image_rows(list(split.image_ids)).tolist()
        rows[f"paths {name}"] = split.image_rows(list(split.image_paths)).tolist()
    return rows


def _are_own_rows(_: Any, value: dict[str, Any], __: Path) -> bool:
    """Whatever a table says, an id has the row at which it stands, or is refused."""
    return all(rows == list(range(len(rows))) for rows in value.values())


def _mutate_lookup_file(path: Path, rng: random.Random) -> None:
    """Change a lookup table's entries, its length, or leave it out."""
    with h5py.File(path, "r+") as file:
        group = file[f"splits/{rng.choice(list(file['splits']))}/lookup"]
        name = rng.choice(list(group))
        entries = group[name][:]
        change = rng.randrange(5)
        if change == 0:
            entries[rng.randrange(len(entries))] ^= np.uint64(1 << rng.randrange(64))
        elif change == 1:
            rng.shuffle(entries)
        elif change == 2:
            entries = np.full_like(entries, rng.choice((0, 2**63, 2**64 - 1)))
        elif change == 3:
            entries = entries[: rng.randrange(len(entries))]
        del group[name]
        if change != 4:
            group.create_dataset(name, data=entries)


def _read_index(index: Path) -> Any:
    """The index as precompute, merge and import read it."""
    content = read_index(index)
    columns = {
        name: [list(column) for column in table.columns.values()]
        for name, table in content.splits.items()
    }
    return content.dataset, columns, content.teachers, content.gaps()


def _equal(valid: Any, value: Any, _: Path) -> bool:
    return bool(valid == value)


def _is_well_formed(_: Any, value: Any, __: Path) -> bool:
    """Of a file that was sealed anew, whatever it says is what it says."""
    return value is not None


def _damages(index: Path) -> tuple[bytes, int]:
    """A digest of all files, and how many of them ``cusa-store verify`` calls damaged."""
    files = sorted(path for path in index.parent.rglob("*.h5"))
    content = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(content).digest(), len(verify(index)[1])


def _damages_of_shard(shard: Path) -> tuple[bytes, int]:
    return _damages(shard.parents[2] / "store.h5")


def _damage_is_told(valid: tuple[bytes, int], value: tuple[bytes, int], _: Path) -> bool:
    return (valid[0] == value[0]) == (value[1] == 0)


def _read_shard_itself(shard: Path) -> Any:
    """A finished shard as a resumed precompute reads it."""
    header, info = read_shard(shard.parents[2], str(shard.relative_to(shard.parents[2])))
    digests = read_picture_digests(shard, info.sha256)
    return header, info, None if digests is None else digests.tolist()


def sealed_anew(mutate: Mutator) -> Mutator:
    """A mutator that leaves the checksum true, as somebody who means harm would."""

    def mutate_and_seal(content: bytes, rng: random.Random) -> bytes:
        mutated = mutate(content, rng)
        first_words, equals, _ = mutated[:BLOCK].partition(b"=")
        if not equals:
            return mutated
        line = first_words + equals + hashlib.sha256(mutated[BLOCK:]).hexdigest().encode() + b"\n"
        return line.ljust(BLOCK, b"\0") + mutated[BLOCK:]

    return mutate_and_seal


# --- the lock


def _make_lock(folder: Path) -> Path:
    path = folder / ".lock"
    path.write_text("process 7 on host, since 2026-01-01 00:00:00\n")
    return path


def _read_lock(path: Path) -> str:
    """What a second run says of the first one, which another process stands for."""
    waiting, telling = os.pipe()
    process = os.fork()
    if process == 0:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(telling, b".")
            os.close(telling)
            signal.pause()  # until it is killed
            os._exit(0)
    try:
        os.read(waiting, 1)
        FolderLock(path.parent).take()
    except CusaError as error:
        return str(error)
    else:
        return "taken"
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(waiting)
        os.close(telling)


def _lock_is_respected(_: Any, value: str, __: Path) -> bool:
    return value != "taken"


def _store_target(
    name: str,
    make: Callable[[Path], Path],
    read: Callable[[Path], Any],
    agrees: Callable[[Any, Any, Path], bool] = _equal,
    mutators: tuple[Mutator, ...] = (mutate_hdf5, mutate_hdf5, *BYTE_MUTATORS),
) -> Target:
    return Target(f"store/{name}", make, mutators, read, agrees, weight=2)


_STRUCTURE = (sealed_anew(mutate_hdf5),)
_LOOKUPS = (sealed_anew(on_path(_mutate_lookup_file)),)

TARGETS = (
    _store_target("index", _make_store, _read_store),
    _store_target("index-of-writers", _make_store, _read_index),
    _store_target("index-sealed-anew", _make_store, _read_store, _is_well_formed, _STRUCTURE),
    _store_target(
        "index-of-writers-sealed-anew", _make_store, _read_index, _is_well_formed, _STRUCTURE
    ),
    _store_target("lookup-sealed-anew", _make_store, _read_by_id, _are_own_rows, _LOOKUPS),
    _store_target("shard", _make_shard, _read_store_of_shard),
    _store_target("shard-resumed", _make_shard, _read_shard_itself),
    _store_target("verify-index", _make_store, _damages, _damage_is_told),
    _store_target("verify-shard", _make_shard, _damages_of_shard, _damage_is_told),
    Target("store/lock", _make_lock, BYTE_MUTATORS, _read_lock, _lock_is_respected),
)

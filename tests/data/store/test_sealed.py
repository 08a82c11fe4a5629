import errno
import io
import os
import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from cusa.data.errors import CusaError, StoreError
from cusa.data.records import Dataset
from cusa.data.store import index as store_index
from cusa.data.store import split_table
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    SHARD_FORMAT,
    open_sealed,
    seal_holds,
    write_sealed,
)
from cusa.data.store.index import read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.verify import verify
from tests.helpers import Fault, add_teacher, fault_of, records, run_error, settings, unit_rows


@pytest.fixture
def index(tmp_path):
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 9)})
    index = tmp_path / "store.h5"
    add_teacher(
        index, dataset, "vision", settings("image", 4), {"train": unit_rows(9, 4, 0)}, skipped=[8]
    )
    return index


def _shard(index):
    return index.with_suffix("") / "vision" / "train-000000007-000000009.h5"


def _flipped(content, position, bit):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def _places(path, datasets):
    """Bytes all over a file, and the first and last ones of its parts."""
    size = path.stat().st_size
    places = {*range(0, size, 37), *range(140), *range(505, 530), *range(size - 8, size)}
    with h5py.File(path) as file:
        for name in datasets:
            start = file[name].id.get_offset()
            places |= {start, start + file[name].nbytes - 1}
    return sorted(places)


def _missed(index, path, datasets):
    """Places where a flipped bit is not found, or blamed on something else than what is named."""
    content, rng, missed = path.read_bytes(), random.Random(0), []
    named = "the index" if path == index else "teacher 'vision', split 'train', rows 7 to 9"
    for place in _places(path, datasets):
        path.write_bytes(_flipped(content, place, rng.randrange(8)))
        _, damages = verify(index)
        if [d.path for d in damages] != [path] or not damages[0].problem.startswith(named):
            missed.append((place, damages))
    path.write_bytes(content)
    assert verify(index) == (3, [])
    return missed


def test_a_flipped_bit_anywhere_in_a_shard_is_found(index):
    assert _missed(index, _shard(index), ["rows", "skipped"]) == []


def test_a_flipped_bit_anywhere_in_the_index_is_found(index):
    names = [
        "splits/train/captions/bytes",
        "splits/train/caption_image",
        "teachers/vision/train/shards/bounds",
    ]
    assert _missed(index, index, [*names, "teachers/vision/train/skipped"]) == []


@pytest.mark.parametrize("form", [INDEX_FORMAT, SHARD_FORMAT])
def test_every_bit_of_the_first_line_counts(index, form):
    path = index if form == INDEX_FORMAT else _shard(index)
    content = path.read_bytes()
    for place in range(content.index(b"\n") + 1):
        for bit in range(8):
            path.write_bytes(_flipped(content, place, bit))
            assert not seal_holds(path, form), (place, bit)
    path.write_bytes(content)
    assert seal_holds(path, form)


@pytest.mark.parametrize("of", ["index", "shard"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:512],
        lambda content: content[:200],
        lambda content: content + b"\0",
        lambda content: content + content,
        lambda content: b"",
    ],
    ids=["last byte gone", "half", "first block", "first line", "a byte more", "twice", "empty"],
)
def test_a_file_of_another_length_is_found(index, of, change):
    path = index if of == "index" else _shard(index)
    path.write_bytes(change(path.read_bytes()))
    _, damages = verify(index)
    assert [d.path for d in damages] == [path]
    assert run_error("store", "verify", index).startswith(
        "Error: 1 of 3 files are damaged or missing"
    )


def test_a_sealed_file_is_a_normal_hdf5_file(index):
    with h5py.File(_shard(index)) as file:
        assert file.userblock_size == 512
        assert file.attrs["format"] == SHARD_FORMAT
        assert file["skipped"][...].tolist() == [8]
        want = unit_rows(9, 4, 0)[7:].astype(np.float16)
        want[1] = np.nan
        np.testing.assert_array_equal(file["rows"][...], want)
    with h5py.File(index) as file:
        assert file.userblock_size == 512
        assert file["teachers/vision/train/rows"].shape == (9, 4)


class _FullDisk(io.BufferedRandom):
    """Takes 600 bytes and no more."""

    room = 600

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def _fill_on_write(monkeypatch):
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda p, m="r", **k: _FullDisk(io.FileIO(p, "w+")) if "w" in m else real(p, m, **k),
    )


def _fill_on_flush(monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def _some_arrays(file):
    for name in "abc":
        file.create_group(name).create_dataset("x", data=np.arange(3000))


@pytest.mark.parametrize("fill", [_fill_on_write, _fill_on_flush])
@pytest.mark.parametrize("older", [None, b"an older file"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_full_disk_leaves_nothing_new(tmp_path, monkeypatch, fill, older, in_memory):
    path = tmp_path / "x.h5"
    if older is not None:
        path.write_bytes(older)
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(CusaError) as refused:
            write_sealed(path, SHARD_FORMAT, _some_arrays, in_memory)
        assert fault_of(refused.value) == Fault(StoreError, path=path)
    assert [p.name for p in tmp_path.iterdir()] == ([] if older is None else ["x.h5"])
    assert older is None or path.read_bytes() == older
    write_sealed(path, SHARD_FORMAT, _some_arrays, in_memory)
    assert seal_holds(path, SHARD_FORMAT)


def test_a_file_that_is_not_built_in_memory_is_the_same(tmp_path):
    paths = [tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "c.h5"]
    for path, in_memory in zip(paths, (True, False, False), strict=True):
        write_sealed(path, SHARD_FORMAT, _some_arrays, in_memory)
        assert seal_holds(path, SHARD_FORMAT)
        with open_sealed(path, SHARD_FORMAT) as file:
            assert file.userblock_size == 512
            assert dict(file.attrs).keys() == {"format", "format_version"}
            for name in "abc":
                assert file[name]["x"].id.get_offset() % 512 == 0
                assert (file[name]["x"][:] == np.arange(3000)).all()
    assert paths[1].read_bytes() == paths[2].read_bytes()


def test_large_indexes_are_written_and_mapped(index, monkeypatch):
    """In place of large ones: small ones, with the limits at 0."""
    contents = read_index(index)
    rows = np.asarray(EmbeddingStore(index)["vision", "train"])
    monkeypatch.setattr(store_index, "_MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(split_table, "_READ_BYTES", 0)
    write_index(index, contents)
    assert verify(index) == (3, [])
    again = read_index(index)
    assert again.teachers == contents.teachers
    for name, texts in contents.splits["train"].columns.items():
        assert list(again.splits["train"].columns[name]) == list(texts)
    assert np.array_equal(
        np.asarray(EmbeddingStore(index)["vision", "train"]), rows, equal_nan=True
    )
    assert list(EmbeddingStore(index).split("train").captions) == list(
        contents.splits["train"].columns["captions"]
    )
    # What is mapped may be replaced.
    write_index(index, again)
    assert verify(index) == (3, [])

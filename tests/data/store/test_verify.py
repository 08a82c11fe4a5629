import errno
import hashlib
from dataclasses import replace

import pytest

from cusa.data.errors import StoreError
from cusa.data.store.checksum import INDEX_FORMAT, write_sealed
from cusa.data.store.index import read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import read_shard, write_shard
from cusa.data.store.verify import verify
from tests.helpers import Fault, make_store, run, run_error, run_fault, run_ok, unit_rows


@pytest.fixture
def index(tmp_path):
    return make_store(
        tmp_path / "s", {"train": 16, "val": 5}, dim=4
    )  # vision: 3 + 1 shards, words: 5 + 2


def _shard(index, name="vision/train-000000007-000000014.h5"):
    return index.with_suffix("") / name


def _files(index):
    return {
        p.relative_to(index.parent).as_posix(): p.read_bytes() for p in index.parent.rglob("*.h5*")
    }


def _flip(path, place=2000):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_whole_store_is_said_to_be_whole(index):
    assert run_ok("store", "verify", index) == "12 files are whole\n"
    before = _files(index)
    assert run_ok("store", "verify", index, "--repair") == "12 files are whole\n"
    assert _files(index) == before


def _remove(shard):
    shard.unlink()


def _swap(shard):
    shard.write_bytes(shard.with_name("train-000000000-000000007.h5").read_bytes())


def _store_as_float32(shard):
    header, info = read_shard(shard.parent, shard.name)
    header = replace(header, settings=replace(header.settings, dtype="float32"))
    write_shard(shard.parent, shard.name, header, unit_rows(16, 4, 0)[7:14], info.skipped)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_remove, "is missing"),
        (_swap, "the file is not the shard that the index names"),
        (_store_as_float32, "the file is not the shard that the index names"),
        (_flip, "its checksum does not hold"),
        (lambda shard: shard.write_bytes(b"nonsense"), "is not a cusa-embeddings-shard file"),
    ],
)
def test_a_wrong_shard_is_named_with_its_rows(index, damage, what):
    damage(_shard(index))
    n_files, damages = verify(index)
    assert n_files == 12
    assert [d.path for d in damages] == [_shard(index)]
    assert damages[0].problem.startswith("teacher 'vision', split 'train', rows 7 to 14: ")
    assert what in damages[0].problem
    assert run_error("store", "verify", index).startswith(
        "Error: 1 of 12 files are damaged or missing"
    )


def test_a_shard_that_the_disk_cannot_read_is_named(index, monkeypatch):
    real = hashlib.file_digest

    def file_digest(file, kind):
        if file.name == str(_shard(index)):
            raise OSError(errno.EIO, "Input/output error")
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    assert [(d.path, d.problem) for d in verify(index)[1]] == [
        (
            _shard(index),
            "teacher 'vision', split 'train', rows 7 to 14: it cannot be read (Input/output error)",
        )
    ]


@pytest.mark.parametrize("place", [3, 2000])
def test_under_a_damaged_index_the_shards_are_checked_by_themselves(index, place):
    _flip(index, place)
    assert [d.path for d in verify(index)[1]] == [index]
    _flip(_shard(index))
    _shard(index, "words/val-000000000-000000007.h5").unlink()  # nothing tells that it was there
    n_files, damages = verify(index)
    assert n_files == 11
    assert [d.path for d in damages] == [index, _shard(index)]
    assert damages[0].problem.startswith("the index: ")
    assert damages[1].problem == "shard train-000000007-000000014.h5: its checksum does not hold"
    run_error("store", "verify", index)


def test_repair_renames_what_is_damaged_and_nothing_else(index):
    _flip(_shard(index))
    _swap(_shard(index, "words/train-000000014-000000021.h5"))
    _shard(index, "words/val-000000000-000000007.h5").unlink()
    before = _files(index)
    output = run_ok("store", "verify", index, "--repair")
    renamed = (
        "store/vision/train-000000007-000000014.h5",
        "store/words/train-000000014-000000021.h5",
    )
    assert _files(index) == {
        f"{n}.damaged" if n in renamed else n: content for n, content in before.items()
    }
    for name in renamed:
        assert f"set aside: {index.parent / name}.damaged" in output
    missing = verify(index)[1]
    assert len(missing) == 3
    assert all("is missing" in d.problem for d in missing)


def test_repair_renames_a_damaged_index(index):
    _flip(index)
    before = _files(index)
    run_ok("store", "verify", index, "--repair")
    assert _files(index) == {
        f"{n}.damaged" if n == "store.h5" else n: content for n, content in before.items()
    }


def test_rows_that_no_shard_holds_are_named_and_not_repaired(index):
    whole = read_index(index)
    entry = whole.teachers["vision"]
    shards = {**entry.shards, "train": entry.shards["train"][::2]}
    write_index(
        index, replace(whole, teachers={**whole.teachers, "vision": replace(entry, shards=shards)})
    )
    before = _files(index)
    assert [(d.path, d.problem) for d in verify(index)[1]] == [
        (index, "no shard holds rows 7 to 14 of teacher 'vision', split 'train'")
    ]
    assert "set aside" not in run_ok("store", "verify", index, "--repair")
    assert _files(index) == before


def test_rows_that_two_shards_hold_are_named(index):
    whole = read_index(index)
    entry = whole.teachers["vision"]
    first, *others = entry.shards["train"]
    shards = {**entry.shards, "train": (replace(first, stop=9), *others)}
    write_index(
        index, replace(whole, teachers={**whole.teachers, "vision": replace(entry, shards=shards)})
    )
    assert [d.problem for d in verify(index)[1]] == [
        "teacher 'vision', split 'train', rows 0 to 9: it holds other rows than the index says: "
        "stop (9 / 7)",
        "two shards hold rows 7 to 9 of teacher 'vision', split 'train'",
    ]


def test_what_is_no_store_is_refused_and_left_alone(index):
    folder = index.parent
    for path in (folder / "nope.h5", folder):
        assert run_fault("store", "verify", path, "--repair") == Fault(StoreError, path=path)
    assert folder.is_dir()
    assert len(EmbeddingStore(index).embeddings("vision", "train").gather(range(16))) == 16


def test_an_index_that_is_sealed_and_makes_no_sense_is_named(index):
    """The shards are then checked in threads, which must not wait for a lock of the failed read."""
    write_sealed(
        index,
        INDEX_FORMAT,
        lambda file: file.create_group("teachers/a/b") and file.create_group("splits"),
    )
    output = run("store", "verify", index)
    assert (output.exit_code, len(output.stdout.splitlines())) == (1, 1)

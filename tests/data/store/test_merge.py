import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cusa.data.errors import StoreError
from cusa.data.records import Dataset, Record
from cusa.data.store.checksum import SHARD_FORMAT, ChecksumError, read_seal
from cusa.data.store.index import read_index, write_index
from cusa.data.store.merge import merge
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.verify import verify
from tests.helpers import (
    Fault,
    add_teacher,
    fault_of,
    make_older,
    make_store,
    records,
    run_failure,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)

SIZES = {"train": 16, "val": 5}


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "s", SIZES, dim=4, truth=True)


def _part(index, name, keep):
    """An index beside ``index`` of those shards alone of which ``keep(file)`` is true."""
    whole, teachers = read_index(index), {}
    for teacher, entry in whole.teachers.items():
        shards = {
            split: tuple(i for i in infos if keep(i.file)) for split, infos in entry.shards.items()
        }
        if shards := {split: infos for split, infos in shards.items() if infos}:
            teachers[teacher] = replace(entry, shards=shards)
    path = index.with_name(name)
    write_index(path, replace(whole, teachers=teachers))
    return path


def _store(folder, teachers, sizes=SIZES, shard_rows=7):
    """A store of image teachers: names and seeds of their rows."""
    dataset = Dataset("made-up", folder, {split: records(split, n) for split, n in sizes.items()})
    for name, seed in teachers.items():
        rows = {split: unit_rows(n, 4, seed) for split, n in sizes.items()}
        add_teacher(folder / "store.h5", dataset, name, settings("image", 4), rows, shard_rows)
    return folder / "store.h5"


def _files(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.h5")}


def _flip(path):
    content = bytearray(path.read_bytes())
    content[2000] ^= 4
    path.write_bytes(content)


def test_parts_joined_in_place_give_the_index_of_the_whole(index):
    ends = ("-000000007.h5", "-000000005.h5")
    first = _part(index, "a.h5", lambda file: file.endswith(ends))
    second = _part(index, "b.h5", lambda file: "vision" in file and not file.endswith(ends))
    third = _part(index, "c.h5", lambda file: "words" in file and not file.endswith(ends))
    assert "vision" not in read_index(third).teachers
    want = index.read_bytes()
    index.unlink()
    shards = _files(index.with_suffix(""))
    output = run_ok("store", "merge", index, third, first, second)
    assert "vision: 21 rows\n" in output
    assert "words: 42 rows\n" in output
    assert index.read_bytes() == want
    run_ok("store", "merge", index, second)  # again, into what is there
    assert index.read_bytes() == want
    shutil.copy(first, index)
    run_ok("store", "merge", index, second, index, third)
    assert index.read_bytes() == want
    assert _files(index.with_suffix("")) == shards  # neither copied nor written again
    assert verify(index) == (12, [])


def test_stores_in_other_folders_are_copied_with_every_row(index, tmp_path):
    other = _store(tmp_path / "other", {"third": 3, "with space": 4})
    out = tmp_path / "out" / "all.h5"
    run_ok("store", "merge", out, index, other)
    want = {
        (name, split): EmbeddingStore(source).embeddings(name, split).gather(range(len(rows)))
        for source in (index, other)
        for name, entry in read_index(source).teachers.items()
        for split in SIZES
        for rows in [EmbeddingStore(source).embeddings(name, split)]
    }
    shutil.rmtree(index.parent)
    shutil.rmtree(other.parent)
    store = EmbeddingStore(out)
    assert set(store.teachers) == {"vision", "words", "third", "with space"}
    assert store.split("train").captions[3] == "train 1 text 1"
    for (name, split), rows in want.items():
        np.testing.assert_array_equal(store.embeddings(name, split).gather(range(len(rows))), rows)
    np.testing.assert_array_equal(want["third", "val"], unit_rows(5, 4, 3).astype(np.float16))
    assert verify(out) == (1 + 7 + 4 + 4 + 4, [])


def test_splits_of_two_stores_are_joined(tmp_path):
    train, val = (_store(tmp_path / s, {"vision": 1}, {s: SIZES[s]}) for s in ("train", "val"))
    out = tmp_path / "out.h5"
    run_ok("store", "merge", out, train, val)
    assert EmbeddingStore(out).splits_of("vision") == ["train", "val"]
    assert len(EmbeddingStore(out).embeddings("vision", "train").gather(range(16))) == 16
    assert verify(out) == (5, [])


def test_an_index_that_is_there_takes_part(index, tmp_path):
    other = _store(tmp_path / "other", {"third": 3})
    run_ok("store", "merge", index, other)
    assert set(EmbeddingStore(index).teachers) == {"vision", "words", "third"}
    assert verify(index) == (12 + 4, [])


@pytest.mark.parametrize(
    ("keep", "gap"),
    [
        (
            lambda file: "vision/train-000000007" not in file,
            "rows 7 to 14 of teacher 'vision', split 'train'",
        ),
        (
            lambda file: "words/val-000000007" not in file,
            "rows 7 to 10 of teacher 'words', split 'val'",
        ),
        (
            lambda file: "words/train-000000000" not in file,
            "rows 0 to 7 of teacher 'words', split 'train'",
        ),
    ],
)
def test_missing_shards_are_named_with_their_rows(index, keep, gap):
    part, out = _part(index, "part.h5", keep), index.with_name("out.h5")
    assert run_fault("store", "merge", out, part) == Fault(
        StoreError, path=out, location=f"no shard holds {gap}"
    )
    assert not out.exists()
    assert not list(out.parent.glob("out/*/*"))


def _other_settings(folder):
    dataset = Dataset("made-up", folder, {"train": records("train", 16)})
    add_teacher(
        folder / "store.h5",
        dataset,
        "vision",
        settings("image", 4, precision="bf16"),
        {"train": unit_rows(16, 4, 0)},
    )


def _other_data(folder):
    _store(folder, {"third": 1}, {"train": 15})


def _other_name(folder):
    dataset = Dataset("coco", folder, {"train": records("train", 16)})
    add_teacher(
        folder / "store.h5", dataset, "third", settings("image", 4), {"train": unit_rows(16, 4, 0)}
    )


def _other_rows(folder):
    _store(folder, {"vision": 7})


def _other_shards(folder):
    _store(folder, {"vision": 0}, {"train": 16}, shard_rows=8)


def _damaged_shard(folder):
    _flip(_store(folder, {"third": 1}).with_suffix("") / "third" / "val-000000000-000000005.h5")


def _swapped_shard(folder):
    shards = _store(folder, {"third": 1}).with_suffix("") / "third"
    shutil.copy(shards / "train-000000000-000000007.h5", shards / "train-000000007-000000014.h5")


def _missing_shard(folder):
    (_store(folder, {"third": 1}).with_suffix("") / "third" / "val-000000000-000000005.h5").unlink()


def _damaged_index(folder):
    _flip(_store(folder, {"third": 1}))


def _no_index(folder):
    pass


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (
            _other_settings,
            Fault(StoreError, location="precision ('bf16' / 'fp32')", name="vision"),
        ),
        (_other_data, Fault(StoreError, location="split 'train'", name="fingerprint")),
        (_other_name, Fault(StoreError, name="dataset")),
        (
            _other_rows,
            Fault(
                StoreError,
                path=Path("other/store/vision/train-000000000-000000007.h5"),
                name="vision",
            ),
        ),
        (
            _other_shards,
            Fault(
                StoreError,
                path=Path("s/store.h5"),
                location="two shards hold rows 0 to 7 of teacher 'vision', split 'train'",
            ),
        ),
        (
            _damaged_shard,
            Fault(ChecksumError, path=Path("other/store/third/val-000000000-000000005.h5")),
        ),
        (
            _swapped_shard,
            Fault(ChecksumError, path=Path("other/store/third/train-000000007-000000014.h5")),
        ),
        (
            _missing_shard,
            Fault(StoreError, path=Path("other/store/third/val-000000000-000000005.h5")),
        ),
        (_damaged_index, Fault(ChecksumError, path=Path("other/store.h5"))),
        (_no_index, Fault(StoreError, path=Path("other/store.h5"))),
    ],
)
def test_what_cannot_be_joined_is_refused_and_no_index_written(index, tmp_path, make, fault):
    other, out = tmp_path / "other" / "store.h5", tmp_path / "out" / "out.h5"
    make(other.parent)
    before = _files(index.parent)
    assert fault_of(run_failure("store", "merge", index, other), tmp_path) == fault
    after = _files(index.parent)
    assert {path: after[path] for path in before} == before
    assert verify(index) == (12, [])
    assert type(run_failure("store", "merge", out, index, other)) is fault.kind
    assert not out.exists()


def test_a_damaged_shard_of_the_store_itself_is_found(index, tmp_path):
    other = _store(tmp_path / "other", {"third": 3})
    _flip(index.with_suffix("") / "words" / "val-000000000-000000007.h5")
    before = index.read_bytes()
    assert run_fault("store", "merge", index, other) == Fault(
        ChecksumError, path=tmp_path / "s/store/words/val-000000000-000000007.h5"
    )
    assert index.read_bytes() == before


def test_known_truth_and_image_root_stay(tmp_path):
    index = make_store(tmp_path / "s", {"train": 6}, truth=True)
    other = make_store(tmp_path / "other", {"train": 6})
    data = read_index(other)
    write_index(other, replace(data, teachers={"more": data.teachers["vision"]}))
    run_ok("store", "merge", index, other)
    store = EmbeddingStore(index)
    assert store.split("train").truth is not None
    assert store.image_root == tmp_path / "s"
    assert set(store.teachers) == {"vision", "words", "more"}


def test_a_split_with_images_of_another_is_not_joined(tmp_path):
    """Split anew, the old training images would be tested on."""
    teacher = settings("image", 4)
    for name, split, image_ids in (("a", "train", "pqr"), ("b", "val", "rst")):
        images = tuple(Record(i, f"{i}.jpg", (i,), (f"{i}#0",)) for i in image_ids)
        dataset = Dataset("made-up", tmp_path, {split: images})
        add_teacher(
            tmp_path / name / "s.h5", dataset, "vision", teacher, {split: unit_rows(3, 4, 0)}
        )
    parts = tmp_path / "a" / "s.h5", tmp_path / "b" / "s.h5"
    with pytest.raises(StoreError) as error:
        merge(tmp_path / "out.h5", parts)
    assert error.value.name == "r"
    assert not (tmp_path / "out.h5").exists()


def test_a_part_that_is_no_store_leaves_nothing(tmp_path):
    index = make_store(tmp_path / "s", {"train": 5})
    for missing in (tmp_path / "nope.h5", tmp_path):
        assert run_fault("store", "merge", tmp_path / "out.h5", index, missing) == Fault(
            StoreError, path=missing
        )
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


@pytest.mark.parametrize("older", [["a"], ["b"], ["a", "b"]])
def test_stores_with_and_without_lookup_tables_are_joined(tmp_path, older):
    """Format 2.0 has none; the joined store is of this version, whatever its parts were of."""
    parts = {"a": _store(tmp_path / "a", {"one": 1})}
    parts["b"] = _store(tmp_path / "b", {"two": 2})
    expected = merge(tmp_path / "new" / "joined.h5", list(parts.values()))
    for name in older:
        make_older(parts[name])
    joined = tmp_path / "old" / "joined.h5"
    assert merge(joined, list(parts.values())).teachers == expected.teachers
    assert joined.read_bytes() == (tmp_path / "new" / "joined.h5").read_bytes()
    assert verify(joined)[1] == []
    split = EmbeddingStore(joined).split("train")
    assert (
        split.caption_rows(split.caption_ids[::-1]).tolist() == list(range(split.n_captions))[::-1]
    )


def test_shards_of_format_2_0_are_joined_as_they_are(tmp_path, index):
    contents = read_index(index)
    whole = EmbeddingStore(index)["words", "train"][:]
    seals = {}
    for shard in index.with_suffix("").rglob("*.h5"):
        make_older(shard)
        seals[shard.relative_to(index.parent).as_posix()] = read_seal(shard, SHARD_FORMAT)
    teachers = {}
    for teacher, entry in contents.teachers.items():
        shards = {}
        for split, infos in entry.shards.items():
            shards[split] = tuple(replace(info, sha256=seals[info.file]) for info in infos)
        teachers[teacher] = replace(entry, shards=shards)
    write_index(index, replace(contents, teachers=teachers))
    make_older(index)
    assert verify(index)[1] == []
    joined = tmp_path / "joined.h5"
    merge(joined, [index])
    assert verify(joined)[1] == []
    np.testing.assert_array_equal(EmbeddingStore(joined)["words", "train"][:], whole)


def test_a_store_of_format_2_0_is_opened_by_id(index):
    split = EmbeddingStore(index).split("train")
    ids = [*split.caption_ids]
    make_older(index)
    older = EmbeddingStore(index).split("train")
    assert older.caption_rows(ids).tolist() == list(range(len(ids)))
    assert older.image_rows(list(older.image_paths)).tolist() == list(range(older.n_images))
    # The next write of the index, such as that of another teacher, adds the tables.
    write_index(index, read_index(index))
    again = EmbeddingStore(index).split("train")
    assert again.caption_rows(ids).tolist() == list(range(len(ids)))

import json
import pickle
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from shutil import copytree

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cusa.cli.store import main as store_main
from cusa.data.errors import EmbeddingsError, StoreError
from cusa.data.files import atomic_file
from cusa.data.records import Dataset
from cusa.data.store.checksum import ChecksumError, ReplacedError, VersionError
from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import ShardHeader, read_shard, stored_rows, write_shard
from cusa.data.store.teacher_entry import TeacherEntry
from tests.helpers import add_teacher, change_sealed, make_store, records, settings, unit_rows


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "s", truth=True)


def _gather(embeddings, rows):
    return embeddings.gather(rows)


def test_round_trip(index):
    store = EmbeddingStore(index)
    assert store.dataset == "made-up"
    assert store.image_root == index.parent
    split = store.split("train")
    assert (split.n_images, split.n_captions) == (40, 80)
    assert split.image_ids[3] == "train3"
    assert split.captions[-1] == "train 39 text 1"
    assert split.captions[2:4] == ["train 1 text 0", "train 1 text 1"]
    assert split.caption_image[:4].tolist() == [0, 0, 1, 1]
    assert split.truth is not None
    assert split.truth.image_labels[:4].tolist() == [0, 0, 1, 1]
    rows = store.embeddings("vision", "train")
    assert rows.shape == (40, 16)
    want = unit_rows(40, 16, 0).astype(np.float16)
    order = np.random.default_rng(1).permutation(40)  # over six shards, out of order, with repeats
    np.testing.assert_array_equal(
        rows.gather(np.append(order, order[:5])), want[np.append(order, order[:5])]
    )
    assert rows.gather([]).shape == (0, 16)
    with pytest.raises(IndexError, match=r"\[0, 40\)"):
        rows.gather([40])
    with pytest.raises(IndexError):
        rows.gather([-1])


@pytest.mark.parametrize("lengths", [[40], [1] * 40, [7, 7, 7, 7, 7, 5], [7, 2, 20, 11], [3, 37]])
@pytest.mark.parametrize(
    ("dim", "dtype"), [(1, "float16"), (3, "float32"), (5, "float16"), (512, "float32")]
)
def test_any_rows_from_shards_of_any_lengths(tmp_path, lengths, dim, dtype):
    """Against plain indexing of one array; shards are mapped as rows of them are asked for."""
    dataset, config = (
        Dataset("d", tmp_path, {"train": records("train", 40)}),
        settings("image", dim, dtype=dtype),
    )
    want = unit_rows(40, dim, 3).astype(dtype)
    shards, start = [], 0
    for length in lengths:
        header = ShardHeader(
            "t", "train", dataset.splits["train"].fingerprint, start, start + length, config
        )
        shards.append(
            write_shard(tmp_path, f"s/{start}.h5", header, want[start : start + length], [])
        )
        start += length
    write_index(
        tmp_path / "s.h5",
        Index.from_dataset(dataset, {"t": TeacherEntry(config, {"train": tuple(shards)})}),
    )
    rows, rng = EmbeddingStore(tmp_path / "s.h5").embeddings("t", "train"), np.random.default_rng(0)
    for n in (1, 2, 3, 40, 100):
        numbers = rng.integers(0, 40, n)
        found = rows.gather(numbers)
        assert (found.dtype, found.shape) == (want.dtype, (n, dim))
        np.testing.assert_array_equal(found, want[numbers])
    for wrong in ([40], [-1], [3, -7, 5], [-(2**62)], [2**62], [39, 41]):
        with pytest.raises(IndexError, match=r"rows must lie in \[0, 40\)"):
            rows.gather(wrong)


def test_threads_may_gather_while_shards_are_mapped(tmp_path):
    """Wrong rows, without a word, if places and array did not change together."""
    config, n = settings("image", 8), 3000
    dataset = Dataset("d", tmp_path, {"train": records("train", n)})
    want = unit_rows(n, 8, 3)
    add_teacher(tmp_path / "s.h5", dataset, "t", config, {"train": want}, shard_rows=20)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(4):
            rows = EmbeddingStore(tmp_path / "s.h5").embeddings("t", "train")

            def gather(seed, rows=rows):
                numbers = np.random.default_rng(seed).integers(0, n, 7)
                return (rows.gather(numbers) == want[numbers].astype(np.float16)).all()

            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(gather, range(400)))
    finally:
        sys.setswitchinterval(before)


def test_rows_are_asked_for_by_integers(index):
    rows = EmbeddingStore(index).embeddings("vision", "train")
    assert rows.gather(np.array([3], np.uint8)).shape == (1, 16)
    for wrong in (np.array([True, False]), np.array([1.5])):
        with pytest.raises(IndexError, match="must be integers"):
            rows.gather(wrong)


def test_any_hdf5_tool_reads_all_rows_through_the_index_also_after_a_move(index, tmp_path):
    moved = tmp_path / "elsewhere" / "deeper"
    copytree(index.parent, moved)
    with h5py.File(moved / "store.h5") as file:
        rows = file["teachers/vision/train/rows"][...]
        assert file["teachers/vision"].attrs["model_id"] == "made-up-image"
    np.testing.assert_array_equal(rows, unit_rows(40, 16, 0).astype(np.float16))


def test_images_below_the_store_move_with_it_and_others_stay(index, tmp_path):
    inside = Dataset("made-up", index.parent / "photos", {"train": records("train", 40)})
    add_teacher(index, inside, "a", settings("image", 4), {"train": unit_rows(40, 4, 0)})
    copytree(index.parent, tmp_path / "moved")
    assert (
        EmbeddingStore(tmp_path / "moved" / "store.h5").image_root == tmp_path / "moved" / "photos"
    )
    outside = Dataset("made-up", tmp_path / "elsewhere", {"train": records("train", 40)})
    add_teacher(index, outside, "b", settings("image", 4), {"train": unit_rows(40, 4, 0)})
    copytree(index.parent, tmp_path / "again")
    assert EmbeddingStore(tmp_path / "again" / "store.h5").image_root == tmp_path / "elsewhere"


def test_readers_go_to_other_processes_without_their_maps(index):
    store = EmbeddingStore(index)
    rows, split = store.embeddings("words", "val"), store.split("val")
    want = rows.gather([19, 0, 7])
    assert len(pickle.dumps((rows, split))) < 10_000
    again, split_again = pickle.loads(pickle.dumps((rows, split)))
    np.testing.assert_array_equal(again.gather([19, 0, 7]), want)
    assert split_again.captions[0] == split.captions[0] == "val 0 text 0"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(_gather, rows, [19, 0, 7]).result(), want)


def test_skipped_rows_are_listed_and_hold_nan(tmp_path):
    index = make_store(tmp_path)
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 40)})
    add_teacher(
        index,
        dataset,
        "holes",
        settings("image", 4),
        {"train": unit_rows(40, 4, 0)},
        skipped=[0, 13, 39],
    )
    rows = EmbeddingStore(index).embeddings("holes", "train")
    assert rows.skipped.tolist() == [0, 13, 39]
    assert np.isnan(rows.gather([13])).all()
    assert np.isfinite(rows.gather([12, 14])).all()


def test_adding_a_teacher_keeps_the_others(index):
    before = {n: e.shards for n, e in read_index(index).teachers.items()}
    dataset = Dataset("made-up", index.parent, {"val": records("val", 10)})
    add_teacher(index, dataset, "third", settings("text", 4), {"val": unit_rows(20, 4, 0)})
    store = EmbeddingStore(index)
    assert set(store.teachers) == {"vision", "words", "third"}
    assert set(store.splits) == {"train", "val", "test"}
    assert {n: e.shards for n, e in read_index(index).teachers.items() if n != "third"} == before
    assert store.split("train").truth is not None
    with pytest.raises(StoreError) as caught:
        store.embeddings("third", "train")
    assert (caught.value.path, caught.value.name) == (index, "third")


def test_writing_twice_gives_the_same_bytes(tmp_path):
    one = make_store(tmp_path / "a" / "s")
    time.sleep(1.1)  # HDF5 keeps times in seconds, where it is not told otherwise
    two = make_store(tmp_path / "b" / "s")
    files = sorted(p.relative_to(one.parent) for p in one.parent.rglob("*.h5"))
    assert len(files) > 20
    for f in files:
        assert (one.parent / f).read_bytes() == (two.parent / f).read_bytes(), f


def test_shards_are_contiguous_uncompressed_and_little_endian(index):
    with h5py.File(next(iter(index.parent.glob("store/vision/train-*.h5")))) as file:
        assert file["rows"].chunks is None
        assert file["rows"].compression is None
        assert file["rows"].dtype.str == "<f2"


def test_rows_that_are_not_finite_are_refused():
    with pytest.raises(EmbeddingsError) as caught:
        stored_rows(np.array([[1, 0], [np.nan, 0]]), "float16", [10, 11])
    assert caught.value.location == "row 11"
    with pytest.raises(EmbeddingsError) as caught:
        stored_rows(np.array([[1e6, 0]]), "float16")
    assert caught.value.location == "row 0"
    assert stored_rows(np.array([[1e6, 0]]), "float32").dtype == "<f4"


def test_a_failed_file_leaves_nothing(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_shard_says_what_it_holds(tmp_path):
    header = ShardHeader("t", "train", "f" * 64, 3, 5, settings("image", 2))
    info = write_shard(
        tmp_path, "a/x.h5", header, np.array([[1, 0], [np.nan, np.nan]], np.float16), [4]
    )
    assert read_shard(tmp_path, "a/x.h5") == (header, info)
    assert (info.file, info.start, info.stop, info.skipped) == ("a/x.h5", 3, 5, (4,))
    assert (tmp_path / "a" / "x.h5").read_bytes()[info.offset :][:4] == np.array(
        [1, 0], "<f2"
    ).tobytes()
    other = ShardHeader("t", "train", "e" * 64, 4, 5, settings("image", 2, precision="bf16"))
    assert header.differences(other) == [
        "precision ('fp32' / 'bf16')",
        "fingerprint of split 'train'",
        "start (3 / 4)",
    ]


def test_differing_settings_are_named_one_by_one():
    mine = settings(
        "image", 2, transform={"size": 8, "feature": "pooler", "crop": 8, "modules": ["m" * 80]}
    )
    theirs = settings(
        "image", 2, transform={"size": 8, "feature": "mean", "mean": None, "modules": ["n"]}
    )
    assert mine.differences(theirs) == [
        "transform.crop (8 / absent)",
        "transform.feature ('pooler' / 'mean')",
        "transform.mean (absent / None)",
        "transform.modules",
    ]
    assert mine.differences(mine) == []
    others = settings("image", 2, transform={"kernel": "a" * 80}, model_id="another")
    assert mine.differences(others) == ["model_id ('made-up-image' / 'another')", "transform"]


def _damage(index, how):
    shard = sorted(index.parent.glob("store/vision/train-*.h5"))[1]
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif how == "swapped":
        other = sorted(index.parent.glob("store/vision/train-*.h5"))[0]
        shard.write_bytes(other.read_bytes())
    elif how == "newer":
        shard.write_bytes(shard.read_bytes().replace(b" 2.1 sha256", b" 3.1 sha256"))
    elif how == "zero":
        shard.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "error_class"),
    [
        ("missing", StoreError),
        ("truncated", StoreError),
        ("swapped", ReplacedError),
        ("newer", VersionError),
        ("zero", StoreError),
    ],
)
def test_damaged_shards_are_named(index, how, error_class):
    _damage(index, how)
    with pytest.raises(StoreError) as caught:
        EmbeddingStore(index).embeddings("vision", "train").gather(range(40))
    assert type(caught.value) is error_class
    assert caught.value.path.name == "train-000000007-000000014.h5"


def test_an_index_with_too_few_or_too_many_rows_is_refused(index):

    def one_more(file):
        file["teachers/words/train/shards/bounds"][-1, 1] += 1

    change_sealed(index, one_more)
    with pytest.raises(StoreError) as caught:
        EmbeddingStore(index).embeddings("words", "train")
    error = caught.value
    assert (error.path, error.name, error.location) == (index, "words", "row 80")


def test_damaged_indexes_are_named(index, tmp_path):
    content = index.read_bytes()
    damages = [
        (ChecksumError, content[: len(content) // 2]),
        (VersionError, content.replace(b" 2.1 sha256", b" 3.1 sha256")),
        (StoreError, b"cusa-other" + content[10:]),
    ]
    for error_class, damaged in damages:
        index.write_bytes(damaged)
        with pytest.raises(StoreError) as caught:
            EmbeddingStore(index)
        assert (type(caught.value), caught.value.path) == (error_class, index)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    for name in ("nope.h5", "foreign.h5"):
        with pytest.raises(StoreError) as caught:
            EmbeddingStore(tmp_path / name)
        assert (type(caught.value), caught.value.path) == (StoreError, tmp_path / name)


def test_what_does_not_fit_is_refused_with_the_field(index):
    def join(name, n, **changes):
        dataset = Dataset(name, index.parent, {"train": records("train", n)})
        entry = TeacherEntry(settings("image", 16, **changes), {})
        return read_index(index).joined(Index.from_dataset(dataset, {"vision": entry}), "it")

    with pytest.raises(StoreError) as caught:
        join("other", 40)
    assert caught.value.name == "dataset"
    with pytest.raises(StoreError) as caught:
        join("made-up", 39)
    assert (caught.value.name, caught.value.location) == ("fingerprint", "split 'train'")
    assert (
        join("made-up", 40).teachers["vision"].shards == read_index(index).teachers["vision"].shards
    )
    for field, value in {
        "weights_sha256": "1" * 64,
        "precision": "fp16",
        "transform": {"size": 9},
    }.items():
        with pytest.raises(StoreError) as caught:
            join("made-up", 40, **{field: value})
        assert caught.value.name == "vision"
        assert caught.value.location.startswith(field)


def test_teachers_are_picked_by_name_or_as_the_only_one(index):
    store = EmbeddingStore(index)
    assert store.pick_teacher("image", None, "--image-teacher") == "vision"
    with pytest.raises(StoreError) as caught:
        store.pick_teacher("text", "x", "--text-teacher")
    assert caught.value.name == "x"
    dataset = Dataset("made-up", index.parent, {"val": records("val", 10)})
    add_teacher(index, dataset, "third", settings("text", 4), {"val": unit_rows(20, 4, 0)})
    with pytest.raises(StoreError) as caught:
        EmbeddingStore(index).pick_teacher("text", None, "--text-teacher")
    assert caught.value.name == "text"


def test_store_info(index):
    runner = CliRunner()
    result = runner.invoke(store_main, ["info", str(index), "--json"])
    summary = json.loads(result.output)
    assert summary["splits"]["train"] | {"fingerprint": ""} == {
        "images": 40,
        "captions": 80,
        "truth": True,
        "fingerprint": "",
    }
    rows = summary["teachers"]["vision"]["rows"]["val"]
    assert rows | {"norms": None} == {
        "rows": 10,
        "skipped": 0,
        "shards": 2,
        "bytes": 320,
        "norms": None,
    }
    assert rows["norms"] == pytest.approx([1, 1, 1], abs=1e-3)
    table = runner.invoke(store_main, ["info", str(index)])
    assert table.exit_code == 0
    assert "made-up-image" in table.output
    missing = runner.invoke(store_main, ["info", str(index.parent / "nope.h5")])
    assert missing.exit_code == 1
    assert missing.output.startswith("Error: embedding store")


@pytest.fixture
def rows(index):
    return EmbeddingStore(index).embeddings("vision", "train")


WANT = unit_rows(40, 16, 0).astype(np.float16)


@pytest.mark.parametrize(
    "chosen",
    [
        0,
        39,
        -1,
        np.int32(7),
        np.uint8(7),
        slice(None),
        slice(3, 30, 4),
        slice(None, None, -1),
        slice(50, 60),
        [3, -1, 3],
        [],
        np.array([5, 0]),
        np.array(5),
        np.arange(40) % 3 == 0,
    ],
    ids=repr,
)
def test_rows_records_and_texts_are_indexed_as_an_array_is(index, rows, chosen):
    np.testing.assert_array_equal(rows[chosen], WANT[chosen])
    assert rows[chosen].shape == WANT[chosen].shape
    split, want = EmbeddingStore(index).split("train"), records("train", 40)
    numbers = np.arange(40)[chosen].tolist()
    if isinstance(numbers, int):
        assert (split[chosen], split.image_ids[chosen]) == (want[numbers], want[numbers].image_id)
    else:
        assert split[chosen] == [want[number] for number in numbers]
        assert split.image_ids[chosen] == [want[number].image_id for number in numbers]


@pytest.mark.parametrize(
    "wrong",
    [
        40,
        -41,
        [0, 40],
        [-41],
        1.5,
        [1.5],
        "a",
        (3, 5),
        [[1]],
        np.zeros(39, bool),
        None,
        2**70,
        np.uint64([2**63]),
    ],
    ids=repr,
)
def test_other_indexes_are_refused(index, rows, wrong):
    split = EmbeddingStore(index).split("train")
    for indexed in (rows, split, split.image_ids):
        with pytest.raises(IndexError):
            indexed[wrong]


@pytest.mark.parametrize("wrong", [5, [[0, 1]], [-1], [40], [0.5], [True]], ids=repr)
def test_other_rows_are_not_gathered(rows, wrong):
    with pytest.raises(IndexError):
        rows.gather(wrong)


def test_the_index_that_is_out_of_range_is_named(rows):
    with pytest.raises(IndexError, match=r"\[-40, 40\); got -41$"):
        rows[[3, -41]]


def test_rows_become_an_array(rows):
    np.testing.assert_array_equal(np.asarray(rows), WANT)
    assert np.asarray(rows, dtype=np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.array(list(rows)), WANT)
    with pytest.raises(ValueError, match="copy"):
        np.array(rows, copy=False)
    assert repr(rows) == "<Embeddings of 'vision', split 'train': 40 x 16 float16>"


def test_a_split_is_indexed_by_image(index):
    split = EmbeddingStore(index).split("train")
    want = records("train", 40)
    assert (split[0], split[-1], len(split)) == (want[0], want[39], 40)
    assert split[3:30:4] == list(want[3:30:4])
    assert list(split) == list(want)
    with pytest.raises(IndexError):
        split[40]
    assert repr(split) == "<Split 'train': 40 images, 80 captions>"
    assert repr(split.captions) == "<80 texts: splits/train/captions>"


def test_a_store_is_indexed_by_teacher_and_split(index):
    store = EmbeddingStore(index)
    np.testing.assert_array_equal(store["vision", "train"][:], WANT)
    with pytest.raises(StoreError):
        store["vision", "nope"]
    for wrong in ("vision", 0, ("vision",)):
        with pytest.raises(TypeError):
            store[wrong]
    assert repr(store) == (
        f"<EmbeddingStore {str(index)!r}: test 8 images, train 40 images, val 10 images; "
        "teachers: vision, words>"
    )


def test_what_is_no_array_does_not_become_one_in_silence(index):
    store = EmbeddingStore(index)
    for thing in (store, store.split("train")):
        with pytest.raises(TypeError, match="is not an array"):
            np.asarray(thing)


def test_names_with_brackets_are_no_markup(tmp_path):
    index = make_store(tmp_path / "[/x] [bold]" / "s")
    result = CliRunner().invoke(store_main, ["info", str(index)])
    assert result.exit_code == 0, result.output
    assert "[/x] [bold]" in result.output

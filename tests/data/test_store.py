import json
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from shutil import copytree

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cusa.data.cli import main as store_main
from cusa.data.errors import CusaError
from cusa.data.records import Dataset
from cusa.data.shards import ShardWriter, atomic_file, check_compatible, read_entries
from cusa.data.store import EmbeddingStore
from tests.helpers import add_teacher, make_store, records, settings, unit_rows


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
    np.testing.assert_array_equal(rows.gather(np.append(order, order[:5])), want[np.append(order, order[:5])])
    assert rows.gather([]).shape == (0, 16)
    with pytest.raises(IndexError, match=r"\[0, 40\)"):
        rows.gather([40])
    with pytest.raises(IndexError):
        rows.gather([-1])


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
    assert EmbeddingStore(tmp_path / "moved" / "store.h5").image_root == tmp_path / "moved" / "photos"
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
    add_teacher(index, dataset, "holes", settings("image", 4), {"train": unit_rows(40, 4, 0)}, skipped=[0, 13, 39])
    rows = EmbeddingStore(index).embeddings("holes", "train")
    assert rows.skipped.tolist() == [0, 13, 39]
    assert np.isnan(rows.gather([13])).all()
    assert np.isfinite(rows.gather([12, 14])).all()


def test_adding_a_teacher_keeps_the_others(index):
    before = {n: e.shards for n, e in read_entries(index).items()}
    dataset = Dataset("made-up", index.parent, {"val": records("val", 10)})
    add_teacher(index, dataset, "third", settings("text", 4), {"val": unit_rows(20, 4, 0)})
    store = EmbeddingStore(index)
    assert set(store.teachers) == {"vision", "words", "third"}
    assert set(store.splits) == {"train", "val", "test"}
    assert {n: e.shards for n, e in read_entries(index).items() if n != "third"} == before
    assert store.split("train").truth is not None
    with pytest.raises(CusaError, match="no rows for split 'train'; run cusa-precompute with --splits train"):
        store.embeddings("third", "train")


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


def test_a_failed_shard_leaves_nothing(tmp_path):
    path = tmp_path / "x.h5"
    with (
        pytest.raises(CusaError, match="NaN or infinity for row 11"),
        ShardWriter(path, "t", "train", "f", 10, 14, settings("image", 2)) as writer,
    ):
        writer.write(np.array([[1, 0], [np.nan, 0]]))
    with (
        pytest.raises(CusaError, match="infinity"),  # fits float32, not float16
        ShardWriter(path, "t", "train", "f", 0, 1, settings("image", 2)) as writer,
    ):
        writer.write(np.array([[1e6, 0]]))
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def _damage(index, how):
    shard = sorted(index.parent.glob("store/vision/train-*.h5"))[1]
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif how == "swapped":
        other = sorted(index.parent.glob("store/vision/train-*.h5"))[0]
        shard.write_bytes(other.read_bytes())
    elif how == "newer":
        with h5py.File(shard, "r+") as file:
            file.attrs["format_version"] = [2, 0]
    elif how == "zero":
        shard.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "is missing"),
        ("truncated", "not a readable HDF5 file|truncated"),
        ("swapped", "not the shard that the index names"),
        ("newer", "format version 2.0"),
        ("zero", "not a readable HDF5 file"),
    ],
)
def test_damaged_shards_are_named(index, how, message):
    _damage(index, how)
    with pytest.raises(CusaError, match=message) as error:
        EmbeddingStore(index).embeddings("vision", "train").gather(range(40))
    assert "train-000000007-000000014.h5" in str(error.value)


def test_rows_of_another_split_or_number_are_not_taken(index):
    """Silently misaligned rows are the worst that could happen: content and counts are compared, not file names."""
    with h5py.File(sorted(index.parent.glob("store/vision/val-*.h5"))[0], "r+") as file:
        file.attrs["split_fingerprint"] = "0" * 64
    with pytest.raises(CusaError, match="content is"):
        EmbeddingStore(index).embeddings("vision", "val").gather([0])
    with h5py.File(index, "r+") as file:
        file["teachers/words/train/shards/bounds"][-1, 1] += 1
    with pytest.raises(CusaError, match="do not hold the 80 rows of split 'train'"):
        EmbeddingStore(index).embeddings("words", "train")


def test_damaged_indexes_are_named(index, tmp_path):
    with pytest.raises(CusaError, match=r"nope.h5 does not exist"):
        EmbeddingStore(tmp_path / "nope.h5")
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2])
    with pytest.raises(CusaError, match="not a readable HDF5 file"):
        EmbeddingStore(index)
    index.write_bytes(content)
    with h5py.File(index, "r+") as file:
        file.attrs["format_version"] = [2, 0]
    with pytest.raises(CusaError, match="upgrade cusa"):
        EmbeddingStore(index)
    with h5py.File(index, "r+") as file:
        file.attrs["format"] = "other"
    with pytest.raises(CusaError, match="is not a cusa-embeddings file"):
        EmbeddingStore(index)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CusaError, match="is not a cusa-embeddings file"):
        EmbeddingStore(tmp_path / "foreign.h5")


def test_what_does_not_fit_is_refused_with_the_field(index):
    other = Dataset("other", index.parent, {"train": records("train", 40)})
    with pytest.raises(CusaError, match="field dataset is 'made-up', this run has 'other'"):
        check_compatible(index, other, {})
    fewer = Dataset("made-up", index.parent, {"train": records("train", 39)})
    with pytest.raises(CusaError, match="fingerprint of split 'train'"):
        check_compatible(index, fewer, {})
    same = Dataset("made-up", index.parent, {"train": records("train", 40)})
    check_compatible(index, same, {"vision": settings("image", 16)})
    for field, value in {"weights_sha256": "1" * 64, "precision": "fp16", "transform": {"size": 9}}.items():
        with pytest.raises(CusaError, match=f"other settings, not to be mixed: {field}"):
            check_compatible(index, same, {"vision": settings("image", 16, **{field: value})})


def test_teachers_are_picked_by_name_or_as_the_only_one(index):
    store = EmbeddingStore(index)
    assert store.pick_teacher("image", None, "--image-teacher") == "vision"
    with pytest.raises(CusaError, match="unknown text teacher 'x'; pass --text-teacher with one of: words"):
        store.pick_teacher("text", "x", "--text-teacher")
    dataset = Dataset("made-up", index.parent, {"val": records("val", 10)})
    add_teacher(index, dataset, "third", settings("text", 4), {"val": unit_rows(20, 4, 0)})
    with pytest.raises(CusaError, match="several text teachers; pass --text-teacher with one of: third, words"):
        EmbeddingStore(index).pick_teacher("text", None, "--text-teacher")


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
    assert summary["teachers"]["words"]["rows"]["val"] == {"rows": 20, "skipped": 0, "shards": 3, "bytes": 640}
    table = runner.invoke(store_main, ["info", str(index)])
    assert table.exit_code == 0
    assert "made-up-image" in table.output
    missing = runner.invoke(store_main, ["info", str(index.parent / "nope.h5")])
    assert missing.exit_code == 1
    assert missing.output.startswith("Error: embedding store")

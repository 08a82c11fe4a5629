"""Rows by id, path, annotations and files of captions: never by luck of order."""

import json
import pickle
import zlib

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError, StoreError
from cusa.data.records import Dataset, Record
from cusa.data.store.id_lookup import LOOKUP_COLUMNS, lookup_table
from cusa.data.store.index import Index, write_index
from cusa.data.store.reader import EmbeddingStore
from tests.helpers import change_sealed


def _records(n, captions=5):
    records = []
    for image in range(n):
        # The last two images have the same captions.
        shown = min(image, n - 2)
        texts = [f"Picture {shown}, caption {number}!" for number in range(captions)]
        ids = [f"c{image}-{number}" for number in range(captions)]
        records.append(Record(str(100 + image), f"train/{image}.jpg", tuple(texts), tuple(ids)))
    return tuple(records)


@pytest.fixture
def store_path(tmp_path):
    dataset = Dataset("mine", tmp_path, {"train": _records(30), "val": _records(4)[:2]})
    write_index(tmp_path / "store.h5", Index.from_dataset(dataset, {}))
    return tmp_path / "store.h5"


@pytest.fixture
def split(store_path):
    return EmbeddingStore(store_path).split("train")


def test_rows_by_id_and_path(split):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, split.n_captions, 400)
    ids = [split.caption_ids[row] for row in rows.tolist()]
    found = split.caption_rows(ids)
    assert found.dtype == np.int64
    assert (found == rows).all()
    images = rng.integers(0, split.n_images, 60)
    assert (split.image_rows([100 + image for image in images.tolist()]) == images).all()
    paths = [split.image_paths[image] for image in images.tolist()]
    assert (split.image_rows(paths) == images).all()
    assert split.caption_rows([]).shape == (0,)
    copy = pickle.loads(pickle.dumps(split))
    assert (copy.caption_rows(ids) == rows).all()


def test_unknown_ids_are_named(split):
    with pytest.raises(DataError) as caught:
        split.caption_rows(["c3-1", "nope", "c4-1", "neither"])
    assert caught.value.name == "nope"
    with pytest.raises(DataError) as caught:
        split.image_rows(["train/3.jpg", "val/3.jpg"])
    assert caught.value.name == "val/3.jpg"


def test_texts_of_one_checksum_are_told_apart(tmp_path):
    """ "plumless" and "buckeroo" have one CRC-32, as have "codding" and "gnu"."""
    same = ["plumless", "buckeroo", "codding", "gnu"]
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    assert zlib.crc32(b"codding") == zlib.crc32(b"gnu")
    records = [Record(name, f"{name}.jpg", ("x",), (f"{name}#0",)) for name in ["a", *same, "z"]]
    dataset = Dataset("mine", tmp_path, {"train": tuple(records)})
    write_index(tmp_path / "store.h5", Index.from_dataset(dataset, {}))
    split = EmbeddingStore(tmp_path / "store.h5").split("train")
    assert split.image_rows(["gnu", "buckeroo", "z", "plumless", "codding"]).tolist() == [
        4, 2, 5, 1, 3,
    ]  # fmt: skip


def test_a_store_of_an_earlier_version_has_no_table(store_path, split):
    def remove(file):
        for group in file["splits"].values():
            del group["lookup"]

    ids = [split.caption_ids[row] for row in range(split.n_captions)]
    change_sealed(store_path, remove)
    old_split = EmbeddingStore(store_path).split("train")
    assert (old_split.caption_rows(ids) == np.arange(split.n_captions)).all()


def test_the_table_is_as_the_format_says(store_path):
    with h5py.File(store_path) as file:
        lookup = file["splits/train/lookup"]
        assert set(lookup) == set(LOOKUP_COLUMNS)
        entries = lookup["image_ids"][:]
    expected = sorted((zlib.crc32(str(100 + row).encode()) << 32) + row for row in range(30))
    assert entries.dtype == np.dtype("<u8")
    assert entries.tolist() == expected


@pytest.mark.parametrize("damage", ["rows", "length", "dtype"])
def test_a_table_that_does_not_fit_is_refused(store_path, damage):
    def change(file):
        lookup = file["splits/train/lookup"]
        entries = lookup["caption_ids"][:]
        del lookup["caption_ids"]
        if damage == "rows":
            entries += np.uint64(1 << 20)
        elif damage == "length":
            entries = entries[1:]
        else:
            entries = entries.astype("<i8")
        lookup.create_dataset("caption_ids", data=entries)

    change_sealed(store_path, change)
    with pytest.raises(StoreError) as caught:
        EmbeddingStore(store_path).split("train").caption_rows(["c3-1"])
    assert caught.value.path == store_path
    assert lookup_table(["a"]).dtype == np.uint64


# A host's own annotations


def _shuffled_pairs(split, seed=0):
    """Entries in another order than the store's, as ALBEF shuffles them, and their rows."""
    order = np.random.default_rng(seed).permutation(split.n_captions)
    entries = []
    for row in order.tolist():
        path = split.image_paths[int(split.caption_image[row])]
        entries.append({"image": path, "caption": split.captions[row]})
    return entries, order


def test_rows_of_a_shuffled_file(tmp_path, split):
    entries, order = _shuffled_pairs(split)
    path = tmp_path / "mine_train.json"
    path.write_text(json.dumps(entries))
    rows = split.rows_of(path)
    assert (rows == order).all()
    assert (split.rows_of(entries) == order).all()
    # By luck of order, nearly all would be wrong.
    assert (np.arange(len(rows)) == rows).mean() < 0.05


@pytest.mark.parametrize("folder", ["/mnt/images/", "../images/"])
def test_a_host_has_the_images_in_a_folder_of_its_own(split, folder):
    entries, order = _shuffled_pairs(split)
    for entry in entries:
        entry["image"] = folder + entry["image"]
    assert (split.rows_of(entries) == order).all()
    entries[1]["image"] = entries[1]["image"].replace("images", "pictures")
    with pytest.raises(DataError) as caught:
        split.rows_of(entries)
    assert caught.value.name == entries[1]["image"]


def test_captions_may_differ_in_what_the_normaliser_drops(split):
    entries = [{"image": "train/3.jpg", "caption": "picture 3 caption 2"}]
    assert split.captions[split.rows_of(entries)[0]] == "Picture 3, caption 2!"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"image": "train/3.jpg", "caption": "Picture 4, caption 2!"}, "train/3.jpg"),
        ({"image": "other/3.jpg", "caption": "Picture 3, caption 2!"}, "other/3.jpg"),
    ],
)
def test_pairs_of_other_data_are_refused(tmp_path, split, entry, name):
    entries = [*_shuffled_pairs(split)[0][:2], entry]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in entries))
    with pytest.raises(DataError) as caught:
        split.rows_of(path)
    assert (caught.value.path, caught.value.location, caught.value.name) == (path, "line 3", name)


def test_one_caption_twice_in_a_file_is_one_row(split):
    entry = {"image": "train/3.jpg", "caption": "Picture 3, caption 2!"}
    rows = split.rows_of([entry, entry])
    assert rows[0] == rows[1]


def test_an_image_with_one_caption_twice(tmp_path):
    records = (Record("a", "a.jpg", ("x", "y", "x"), ("a0", "a1", "a2")),)
    write_index(
        tmp_path / "s.h5", Index.from_dataset(Dataset("d", tmp_path, {"train": records}), {})
    )
    split = EmbeddingStore(tmp_path / "s.h5").split("train")
    entries = [{"image": "a.jpg", "caption": ["x", "x", "y"]}]
    assert split.rows_of(entries).tolist() == [0, 2, 1]


def test_rows_of_a_file_of_captions(tmp_path, split):
    order = np.random.default_rng(1).permutation(split.n_images).tolist()
    lines = [split.captions[5 * image + number] for image in order for number in (4, 0, 1, 2, 3)]
    path = tmp_path / "train_caps.txt"
    path.write_text("\n".join(lines) + "\n")
    rows = split.rows_of_captions(path)
    expected = [5 * image + number for image in order for number in (4, 0, 1, 2, 3)]
    # The last two images have the same captions: the store's order decides.
    images = split.caption_image[rows][::5].tolist()
    assert sorted(images) == list(range(split.n_images))
    is_unique = np.isin(np.repeat(order, 5), [28, 29], invert=True)
    assert (rows[is_unique] == np.array(expected)[is_unique]).all()
    assert [split.captions[row] for row in rows.tolist()] == lines

    with pytest.raises(DataError) as caught:
        split.rows_of_captions(path, per_image=4)
    assert caught.value.name == "per_image" or caught.value.location == "line 5"
    lines[7] = "Something else"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        split.rows_of_captions(path)
    assert caught.value.location == "line 6"
    path.write_text("\n".join(lines[:8]))
    with pytest.raises(DataError) as caught:
        split.rows_of_captions(path)
    assert caught.value.name == "per_image"


# Ids and files of other kinds


@pytest.mark.parametrize(
    "ids",
    [
        np.array([100, 102]),
        torch.tensor([100, 102]),
        [np.int64(100), torch.tensor(102)],
        ["100", 102],
    ],
)
def test_whole_numbers_of_any_kind_are_ids(split, ids):
    assert split.image_rows(ids).tolist() == [0, 2]


@pytest.mark.parametrize("ids", ["100", b"100", 100, None, {"100"}, np.array(100)])
def test_ids_are_several(split, ids):
    with pytest.raises(DataError) as caught:
        split.image_rows(ids)
    assert caught.value.name == "ids"


@pytest.mark.parametrize("item", [b"100", None, True, 100.0, ["100"]])
def test_what_is_no_id_is_refused(split, item):
    with pytest.raises(DataError) as caught:
        split.image_rows([100, item])
    assert (caught.value.name, caught.value.location) == ("ids", "id 1")


def test_half_a_character_is_an_unknown_id(split):
    with pytest.raises(DataError) as caught:
        split.caption_rows(["\ud800"])
    assert caught.value.name == "\ud800"


@pytest.fixture
def mixed_split(tmp_path):
    """Two images share a caption; one caption has no words, as its teacher's skipping leaves it."""
    captions = {"1": ("A dog.", "A cat."), "2": ("A dog.", "A bird."), "3": ("...", "A fish.")}
    records = []
    for image_id, texts in captions.items():
        ids = (f"{image_id}#0", f"{image_id}#1")
        records.append(Record(image_id, f"{image_id}.jpg", texts, ids))
    dataset = Dataset("mine", tmp_path, {"val": tuple(records)})
    write_index(tmp_path / "store.h5", Index.from_dataset(dataset, {}))
    return EmbeddingStore(tmp_path / "store.h5").split("val")


def test_a_caption_without_words(mixed_split, tmp_path):
    rows = [{"image": "3.jpg", "caption": "A fish"}, {"image": "3.jpg", "caption": "..."}]
    assert mixed_split.rows_of(rows).tolist() == [5, 4]
    path = tmp_path / "captions.txt"
    path.write_text("A fish\n...\nA bird\nA dog\n")
    assert mixed_split.rows_of_captions(path, per_image=2).tolist() == [5, 4, 3, 2]


def test_a_line_that_is_a_caption_of_several_images(mixed_split, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("A fish\nA dog\n")
    with pytest.raises(DataError) as caught:
        mixed_split.rows_of_captions(path, per_image=1)
    assert caught.value.location == "line 2"


def test_a_host_that_counts_images_in_its_own_way(mixed_split):
    rows = [{"image": "1.jpg", "caption": "A dog", "image_id": 2}]
    assert mixed_split.rows_of(rows).tolist() == [0]


@pytest.mark.parametrize("per_image", [0, -1, 2.0, None, "5", True])
def test_captions_of_each_image_are_a_whole_number(split, tmp_path, per_image):
    (tmp_path / "captions.txt").write_text("A dog\n")
    with pytest.raises(DataError) as caught:
        split.rows_of_captions(tmp_path / "captions.txt", per_image)
    assert caught.value.name == "per_image"


def test_a_file_of_captions_that_is_empty_or_missing(split, tmp_path):
    path = tmp_path / "captions.txt"
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            split.rows_of_captions(path)
        assert caught.value.path == path
        path.touch()


@pytest.mark.parametrize("annotations", [None, 3, [], b"x", {"image": ["a"]}, iter([{}])])
def test_what_is_no_annotations(split, annotations):
    with pytest.raises(DataError) as caught:
        split.rows_of(annotations)
    assert caught.value.name == "annotations"


def test_pictures_in_annotations_are_not_written(tmp_path, monkeypatch):
    picture = {"bytes": b"no picture", "path": "a.jpg"}
    table = pyarrow.table({"image": pyarrow.array([picture]), "caption": ["A dog"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    dataset = load_dataset(f"val={tmp_path / 'x.parquet'}", data_root=tmp_path / "data")
    write_index(tmp_path / "store.h5", Index.from_dataset(dataset, {}))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    split = EmbeddingStore(tmp_path / "store.h5").split("val")
    assert split.rows_of(tmp_path / "x.parquet").tolist() == [0]
    assert not list((tmp_path / "work").iterdir())

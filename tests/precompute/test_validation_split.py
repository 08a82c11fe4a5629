"""Data sets without a val split get one, and a store keeps the one that it has."""

import hashlib
import json

import numpy as np
import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.records import Dataset, Record, Truth
from cusa.data.store.reader import EmbeddingStore
from cusa.data.validation_split import choose_val_images, with_val_split
from cusa.precompute.selection import Selection, select, split_names
from tests.helpers import (
    add_teacher,
    make_images,
    records,
    run_failure,
    run_ok,
    unit_rows,
)
from tests.helpers import settings as made_up_settings

N_IMAGES = 24


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """24 images of two captions each, all of them for training."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, name in enumerate(make_images(folder, N_IMAGES)):
        for version in range(2):
            caption = f"picture number {number}, version {version}"
            lines.append(json.dumps({"image": name, "caption": caption, "image_id": f"id{number}"}))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return path


def _args(manifest, teachers, out, *options):
    return ["--dataset", str(manifest), *teachers, "--out", str(out), *(str(m) for m in options)]


def _by_hash(n=N_IMAGES):
    """Written out: ids by the sha256 of their bytes."""
    return sorted(
        (f"id{i}" for i in range(n)), key=lambda name: hashlib.sha256(name.encode()).hexdigest()
    )


@pytest.mark.parametrize(
    ("n_images", "fraction", "n_val"),
    [
        (24, None, 2),
        (26, None, 3),
        (60_000, None, 5_000),
        (60_000, 0.1, 6_000),
        (2, None, 1),
        (1, None, 0),
        (0, None, 0),
        (3, 0.0, 0),
        (3, 0.01, 1),
        (3, 0.999, 2),
        (10, 0.25, 2),
    ],
)
def test_how_many_images_are_val(n_images, fraction, n_val):
    chosen = choose_val_images([f"id{i}" for i in range(n_images)], fraction)
    assert len(chosen) == n_val
    assert chosen == set(_by_hash(n_images)[:n_val])


@pytest.mark.parametrize("fraction", [1, -0.1, 2, float("nan"), float("inf")])
def test_other_fractions_are_refused(fraction):
    with pytest.raises(SettingError) as error:
        choose_val_images(["a", "b"], fraction)
    assert error.value.name == "val_fraction"


def test_growing_data_keep_their_val_images():
    small, large = (
        choose_val_images([f"id{i}" for i in range(1000)]),
        choose_val_images([f"id{i}" for i in range(1100)]),
    )
    assert len(small - large) < 15  # by chance: those that others got in front of


def test_splitting_keeps_order_captions_and_truth(tmp_path):
    train = records("train", 6)
    pointers = np.arange(0, 25, 2)
    indices = np.array([[i, (i + 1) % 6] for i in range(6) for _ in range(2)])
    truth = Truth(np.arange(6) // 2, pointers, np.sort(indices, axis=1).ravel())
    dataset = Dataset("d", tmp_path, {"train": train, "test": records("test", 2)}, {"train": truth})
    split = with_val_split(dataset, {"train4", "train1", "elsewhere"})
    assert list(split.splits) == ["train", "val", "test"]
    assert split.splits["val"] == (train[1], train[4])
    assert split.splits["train"] == (train[0], train[2], train[3], train[5])
    assert split.truth["val"].image_labels.tolist() == [0, 2]
    # Image i's captions are true of i and i + 1: of 1 and 4, each of itself alone.
    assert split.truth["val"].indptr.tolist() == [0, 1, 2, 3, 4]
    assert split.truth["val"].indices.tolist() == [0, 0, 1, 1]
    assert split.truth["train"].indptr.tolist() == [
        0,
        1,
        2,
        4,
        6,
        7,
        8,
        10,
        12,
    ]  # of 0: {0}, 2: {2, 3}, 3: {3}, 5: {0, 5}
    assert split.truth["train"].indices.tolist() == [0, 0, 1, 2, 1, 2, 2, 2, 0, 3, 0, 3]
    assert with_val_split(dataset, set()) is dataset


def test_a_data_set_without_val_trains(tmp_path, manifest, teachers):
    """The two commands of the README, one after the other."""
    out = tmp_path / "store.h5"
    text = run_ok("precompute", *_args(manifest, teachers, out))
    assert "note: pairs has no val split: val gets 2 of its 24 training images" in text
    assert "--val-fraction" in text
    store = EmbeddingStore(out)
    assert set(store.split("val").image_ids) == set(_by_hash()[:2])
    assert not set(store.split("val").image_ids) & set(store.split("train").image_ids)
    assert store.split("train").n_images == 22
    run_ok(
        "train",
        "--embeddings",
        out,
        "--student",
        "adapter",
        "--run-dir",
        tmp_path / "run",
        "--epochs",
        1,
        "--set",
        "train.batch_size=4",
        "--set",
        "train.workers=0",
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("store*/**/*.h5")}
    run_ok("precompute", *_args(manifest, teachers, out))
    assert {path: path.read_bytes() for path in before} == before


def _val(out):
    splits = EmbeddingStore(out).splits
    return set(splits["val"].image_ids) if "val" in splits else None


def test_fractions(tmp_path, manifest, teachers):
    none, third = tmp_path / "none.h5", tmp_path / "third.h5"
    assert "no val split" not in run_ok(
        "precompute", *_args(manifest, teachers, none, "--val-fraction", 0)
    )
    assert _val(none) is None
    run_ok("precompute", *_args(manifest, teachers, third, "--val-fraction", 1 / 3))
    assert _val(third) == set(_by_hash()[:8])
    for out, val in (
        (none, None),
        (third, set(_by_hash()[:8])),
    ):  # the store's own split, without being asked for
        run_ok(
            "precompute", "--dataset", manifest, "--teacher", "minilm", "--workers", 0, "--out", out
        )
        assert _val(out) == val
        assert EmbeddingStore(out).splits_of("minilm") == EmbeddingStore(out).splits_of("vit")
    error = run_failure("precompute", *_args(manifest, teachers, third, "--val-fraction", 0.5))
    assert (type(error), error.name) == (StoreError, "fingerprint")


def test_a_store_that_was_made_before_goes_on_without_val(tmp_path, manifest, teachers):
    """Made as before this was there: all images are train."""
    dataset, out = load_dataset(manifest), tmp_path / "store.h5"
    rows = {"train": unit_rows(N_IMAGES, 4, 0)}
    add_teacher(out, dataset, "old", made_up_settings("image", 4), rows)
    words = [teachers[2], teachers[3], "--workers", "0"]
    text = run_ok("precompute", *_args(manifest, words, out))
    assert "no val split" not in text
    assert list(EmbeddingStore(out).splits) == ["train"]


def test_one_split_after_the_other(tmp_path, manifest, teachers):
    for name, fraction in (("default", ()), ("quarter", ("--val-fraction", 0.25))):
        for order in (("train", "val"), ("val", "train")):
            out = tmp_path / name / order[0] / "store.h5"
            run_ok("precompute", *_args(manifest, teachers, out, "--splits", order[0], *fraction))
            run_ok("precompute", *_args(manifest, teachers, out, "--splits", order[1]))
            assert _val(out) == set(_by_hash()[: 6 if fraction else 2])
            assert EmbeddingStore(out).split("train").n_images == N_IMAGES - len(_val(out))


def _selected(dataset, store=None, **changes):
    fields = {"splits": None, "limit": None, "val_fraction": None, **changes}
    return select(dataset, Selection(**fields), store)


def test_a_limited_store_stays_what_it_is(tmp_path):
    images = tuple(Record(f"id{i}", f"{i}.jpg", ("a",), (f"{i}#0",)) for i in range(400))
    dataset = Dataset("d", tmp_path, {"train": images})
    unsplit = tmp_path / "unsplit.h5"
    add_teacher(
        unsplit,
        dataset.limited(5),
        "old",
        made_up_settings("image", 4),
        {"train": unit_rows(5, 4, 0)},
    )
    again = _selected(dataset, EmbeddingStore(unsplit), limit=5)
    assert {name: len(split) for name, split in again.splits.items()} == {"train": 5}
    limited = _selected(dataset, limit=5)
    assert {name: len(split) for name, split in limited.splits.items()} == {"train": 5, "val": 5}
    out = tmp_path / "limited.h5"
    rows = {name: unit_rows(5, 4, 0) for name in limited.splits}
    add_teacher(out, limited, "old", made_up_settings("image", 4), rows)
    assert _selected(dataset, EmbeddingStore(out), limit=5).splits == limited.splits
    # Without the limit they are other data, and are not made to fit.
    for store in (unsplit, out):
        whole = _selected(dataset, EmbeddingStore(store))
        assert len(whole.splits["train"]) == 360
        assert whole.splits["train"].fingerprint != EmbeddingStore(store).split("train").fingerprint


def test_what_has_a_val_split_or_no_train_split_is_left_alone(tmp_path):
    for splits in (("train", "val"), ("val",), ("test",)):
        dataset = Dataset("d", tmp_path, {name: records(name, 8) for name in splits})
        assert _selected(dataset).splits == dataset.splits
        assert _selected(dataset).notes == ()
        assert "changes nothing" in _selected(dataset, val_fraction=0.5).notes[0]
        assert _selected(dataset, val_fraction=0.5).splits == dataset.splits
    both = Dataset("d", tmp_path, {"train": records("train", 8), "test": records("test", 2)})
    assert _selected(both, splits=("test",)).notes == ()
    with pytest.raises(DataError):
        _selected(both, splits=("val",), val_fraction=0.0)


def test_a_val_split_from_another_file_stays_the_stores(tmp_path):
    """Made of two files, a teacher is added for the training images alone."""
    both = Dataset("d", tmp_path, {name: records(name, 8) for name in ("train", "val")})
    rows = {name: unit_rows(8, 4, 0) for name in both.splits}
    add_teacher(tmp_path / "s.h5", both, "old", made_up_settings("image", 4), rows)
    train = Dataset("d", tmp_path, {"train": both.splits["train"]})
    assert _selected(train, EmbeddingStore(tmp_path / "s.h5")).splits == train.splits
    add_teacher(
        tmp_path / "v.h5",
        both.select(["val"]),
        "old",
        made_up_settings("image", 4),
        {"val": rows["val"]},
    )
    assert _selected(train, EmbeddingStore(tmp_path / "v.h5")).splits == train.splits


def test_names_of_splits():
    assert split_names([" train, val ,"]) == ("train", "val")
    assert split_names(["train", "val"]) == ("train", "val")
    with pytest.raises(SettingError):
        split_names([" , "])

"""--val-embeddings: a run validates on another store than it trains on, and is measured on it."""

import json
import shutil

import pytest
import torch

from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.records import Dataset
from cusa.train.commands import split_to_measure
from cusa.train.saving.run_dir import Checkpoints, load_run, read_metrics
from tests.helpers import (
    ADAPTER,
    Fault,
    add_teacher,
    make_pairs,
    make_store,
    make_tiny_clip,
    records,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)
from tests.train.pictures import precompute_pictures, student_options


def _args(index, run_dir, *more):
    """Seven steps of an adapter, validated after 3, 6 and 7."""
    steps = ("--steps", 7, "--validate-every", 3, "--warmup", 0, "--batch-size", 16)
    return ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *steps, *more)


def _store(folder, name, sizes, **changed):
    """A store of another data set, whose encoders have the same settings but for those given."""
    splits = {split: records(f"{name}-{split}", n) for split, n in sizes.items()}
    dataset = Dataset(name, folder, splits)
    images = {split: unit_rows(n, 16, seed=n) for split, n in sizes.items()}
    texts = {split: unit_rows(2 * n, 16, seed=n) for split, n in sizes.items()}
    index = folder / f"{name}.h5"
    add_teacher(index, dataset, "vision", settings("image", 16, **changed), images)
    add_teacher(index, dataset, "words", settings("text", 16), texts)
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A store to train on; as that of a crawl, it has no other split."""
    return make_store(tmp_path_factory.mktemp("crawl"), sizes={"train": 40})


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return _store(tmp_path_factory.mktemp("other"), "curated", {"val": 9, "test": 7})


@pytest.fixture(scope="module")
def trained(index, other, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    out = run_ok("train", *_args(index, run_dir, "--val-embeddings", other))
    assert f"val       curated: split 'val' of {other}" in out
    return run_dir


def test_it_is_validated_there_and_says_so(index, other, trained):
    lines = [line for line in read_metrics(trained) if line["kind"] == "val"]
    assert [line["step"] for line in lines] == [3, 6, 7]
    config, provenance = load_run(trained)
    assert (config.data.embeddings, config.data.val_embeddings) == (str(index), str(other))
    assert (provenance.dataset, list(provenance.splits)) == ("made-up", ["train"])
    assert (provenance.validation.dataset, provenance.validation.split) == ("curated", "val")
    card = (trained / "best" / "README.md").read_text()
    assert f"| val of curated | `{provenance.validation.fingerprint}` |" in card


def test_its_scores_are_those_of_that_split(other, trained):
    """Measured anew by cusa-eval, which takes that store by itself."""
    run_ok("eval", "--run", trained, "--split", "val", "--bootstrap", 0)
    metrics = json.loads((trained / "eval" / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["split"]) == ("curated", "val")
    best = [line for line in read_metrics(trained) if line.get("best")][-1]
    assert metrics["heads"]["cross"]["retrieval"]["rsum"] == pytest.approx(best["rsum"])


def test_it_is_evaluated_on_the_test_split_there(index, other, trained, tmp_path):
    assert split_to_measure(trained).split == "test"
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "--val-embeddings", other), "--report")
    metrics = json.loads((run_dir / "eval" / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["split"]) == ("curated", "test")
    assert metrics["n_images"] == 7


def test_the_weights_do_not_depend_on_where_it_is_validated(index, trained, tmp_path):
    run_dir = tmp_path / "run"
    common = ("--steps", 7, "--warmup", 0, "--batch-size", 16)
    run_ok("train", "--embeddings", index, "--run-dir", run_dir, *ADAPTER, *common)
    one, two = (Checkpoints(folder).newest()[0].tensors for folder in (trained, run_dir))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_must_have_the_same_split(index, other, trained, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    (tmp_path / "moved").mkdir()
    shutil.copytree(other.parent, tmp_path / "moved", dirs_exist_ok=True)
    moved = ("--val-embeddings", tmp_path / "moved" / other.name)
    run_ok("train", "--resume", "--run-dir", run_dir, *moved, "--steps", 8)
    assert load_run(run_dir)[0].data.val_embeddings == str(moved[1])
    changed = _store(tmp_path, "changed", {"val": 8})
    for val_store in (changed, make_store(tmp_path / "store", sizes={"train": 4, "val": 9})):
        assert run_fault(
            "train", "--resume", "--run-dir", run_dir, "--val-embeddings", val_store
        ) == Fault(StoreError, path=index)


def test_what_cannot_be_validated_on_is_refused_before_training(index, other, tmp_path):
    run_dir = tmp_path / "run"

    def fault(val_store, *more):
        return run_fault("train", *_args(index, run_dir, "--val-embeddings", val_store, *more))

    assert fault(tmp_path / "nowhere.h5").kind is not SettingError
    no_val = ("--set", "data.val_split=null")
    assert fault(other, *no_val) == Fault(SettingError, name="data.val_embeddings")
    assert fault(other, "--set", "data.val_split=dev") == Fault(StoreError, path=other, name="dev")
    without_val = _store(tmp_path, "without-val", {"test": 4})
    assert fault(without_val) == Fault(StoreError, path=without_val, name="val")
    unlike = _store(tmp_path, "unlike", {"val": 4}, weights_sha256="f" * 64)
    assert fault(unlike) == Fault(StoreError, path=unlike, name="vision")
    dataset = Dataset("bare", tmp_path, {"val": records("val", 4)})
    images = {"val": unit_rows(4, 16, seed=1)}
    bare = tmp_path / "bare.h5"
    add_teacher(bare, dataset, "vision", settings("image", 16), images)
    assert fault(bare) == Fault(StoreError, path=bare, name="words")
    assert not run_dir.exists()


def test_a_student_of_pictures_reads_them_from_that_stores_folder(tmp_path):
    clip = make_tiny_clip(tmp_path / "clip")
    stores = {}
    for name, n in (("crawl", 12), ("curated", 6)):
        stores[name] = tmp_path / f"{name}.h5"
        precompute_pictures(make_pairs(tmp_path / f"{name}-images", n=n), clip, stores[name])
    options = student_options(stores["crawl"], clip, tmp_path / "run", epochs=1, batch_size=6)
    val_store = ("--val-embeddings", stores["curated"])
    (tmp_path / "curated-images").rename(tmp_path / "moved")
    assert run_fault("train", *options, *val_store).kind is DataError
    run_ok("train", *options, *val_store, "--set", f"data.val_image_root={tmp_path / 'moved'}")
    assert [line["kind"] for line in read_metrics(tmp_path / "run")][-1] == "val"
    run_ok("eval", "--run", tmp_path / "run", "--split", "val", "--bootstrap", 0)

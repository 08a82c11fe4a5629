"""Without a validation split a run trains all the same.

The last epoch is kept, and whoever reads the run copes.
"""

import json
import signal

import pytest
import torch

from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.records import Dataset
from cusa.data.store.reader import EmbeddingStore
from cusa.train.assemble import resolve
from cusa.train.config_building import build_config
from cusa.train.saving.run_dir import Checkpoints, load_run, read_metrics
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import load_saved
from cusa.train.sources import validation_sources
from cusa.train.towers.processors import Processors
from cusa.train.trainer import Trainer
from tests.helpers import (
    ADAPTER,
    Fault,
    ForkedCommand,
    add_teacher,
    kill_at,
    make_store,
    records,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)


def _args(index, run_dir, *more):
    """Three epochs of five steps."""
    rest = (
        "--batch-size",
        16,
        "--epochs",
        3,
        "--set",
        "train.log_every=1",
        "--checkpoint-steps",
        5,
    )
    return ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *rest, *more)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "store", sizes={"train": 40, "test": 8})


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    out = run_ok("train", *_args(index, run_dir))
    assert f"no validation ({index} has no split 'val'): best/ holds the newest student" in out
    assert "last epoch 3" in out
    return run_dir


def test_the_last_epochs_student_is_kept(whole):
    saved = load_saved(whole)
    assert (saved.origin.epoch, saved.origin.step, saved.origin.val) == (3, 15, {})
    assert load_run(whole)[0].data.val_split is None
    assert list(load_run(whole)[1].splits) == ["train"]
    last = Checkpoints(whole).newest()[0]
    weights = saved.student.state_dict()
    assert all(torch.equal(weights[name], last.tensors[f"student.{name}"]) for name in weights)
    assert last.progress == Progress(15, 15, 15, None, 0)
    assert {line["kind"] for line in read_metrics(whole)} == {"train"}
    assert "Not measured yet" in (whole / "best" / "README.md").read_text()


@pytest.mark.parametrize(("where", "step"), [("_train_on", 7), ("_validate", 10)])
def test_killed_it_goes_on_exactly(index, whole, tmp_path, where, step):
    """In the middle of an epoch, and at its end after the checkpoint of its last step."""
    run_dir = tmp_path / "part"
    patch = kill_at(Trainer, where, step)
    done = ForkedCommand("train", *_args(index, run_dir), patch=patch).wait()
    assert done.returncode == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", run_dir)
    one, two = (Checkpoints(folder).newest()[0] for folder in (whole, run_dir))
    assert one.progress == two.progress
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    best = load_saved(whole).student.state_dict(), load_saved(run_dir).student.state_dict()
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_nothing_is_left_to_do_for_a_finished_run(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    assert "last epoch 3" in run_ok("train", "--resume", "--run-dir", whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == before


def test_evaluation_and_its_report_cope(whole):
    run_ok("eval", "--run", whole, "--split", "test", "--bootstrap", 10)
    assert json.loads((whole / "eval" / "metrics.json").read_text())["epoch"] == 3
    page = (whole / "eval" / "report.html").read_text()
    assert "no validation" in page
    assert "best epoch" not in page


def test_a_sweep_has_no_table_of_recalls(index, tmp_path):
    out = run_ok("train", *_args(index, tmp_path / "sweep", "--epochs", 1), "--sweep", "seed=0,1")
    assert "measure the runs with cusa-eval" in out
    assert (tmp_path / "sweep" / "sweep.md").read_text().splitlines()[0] == "| runs |"
    runs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]
    assert [run["val"] for run in runs] == [None, None]


def test_validation_can_be_switched_off(tmp_path):
    index, run_dir = make_store(tmp_path / "store"), tmp_path / "run"
    out = run_ok("train", *_args(index, run_dir, "--epochs", 1, "--set", "data.val_split=null"))
    assert "no validation (data.val_split is null)" in out
    assert {line["kind"] for line in read_metrics(run_dir)} == {"train"}
    assert run_fault(
        "train", "--resume", "--run-dir", run_dir, "--set", "data.val_split=test"
    ) == Fault(SettingError, name="data.val_split")


def test_what_needs_a_validation_split_is_refused_without_one(index, tmp_path):
    def config(**sections):
        return build_config({"student": {"name": "adapter"}, **sections})

    store = EmbeddingStore(index)
    with pytest.raises(SettingError) as error:
        resolve(config(train={"patience": 2}), store)
    assert error.value.name == "train.patience"
    with pytest.raises(SettingError) as error:
        resolve(config(train={"validate_every": 2}), store)
    assert error.value.name == "train.validate_every"
    with pytest.raises(StoreError) as error:
        resolve(config(data={"val_split": "dev"}), store)
    assert error.value.name == "dev"
    assert run_fault("train", *_args(index, tmp_path / "run", "--patience", 2)) == Fault(
        SettingError, name="train.patience"
    )
    assert not (tmp_path / "run").exists()


def test_a_validation_split_of_skipped_captions_is_refused_before_training(tmp_path):
    dataset = Dataset(
        "made-up", tmp_path, {"train": records("train", 20), "val": records("val", 4)}
    )
    images = {"train": unit_rows(20, 8, 0), "val": unit_rows(4, 8, 1)}
    captions = {"train": unit_rows(40, 8, 2), "val": unit_rows(8, 8, 3)}
    add_teacher(tmp_path / "store.h5", dataset, "vision", settings("image", 8), images)
    add_teacher(
        tmp_path / "store.h5", dataset, "words", settings("text", 8), captions, skipped=range(8)
    )
    store = EmbeddingStore(tmp_path / "store.h5")
    config, _ = resolve(build_config({"student": {"name": "adapter"}}), store)
    with pytest.raises(DataError) as error:
        validation_sources(store, config, {"image": "vision", "text": "words"}, Processors())
    assert error.value.name == "val"
    assert run_fault("train", *_args(store.path, tmp_path / "run")) == Fault(DataError, name="val")
    assert not (tmp_path / "run").exists()
    run_ok(
        "train", *_args(store.path, tmp_path / "run", "--set", "data.val_split=null", "--epochs", 1)
    )
    no_val = ("--set", "data.val_split=null")
    assert run_fault(
        "train", *_args(store.path, tmp_path / "none", "--set", "data.train_split=val", *no_val)
    ) == Fault(StoreError)

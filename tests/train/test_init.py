"""Warm start: a trained student's weights and heads, a new optimizer and schedule, and a run that
remembers.
"""

import shutil
import signal

import pytest
import torch

from cusa.data.errors import CusaError, RunError, SettingError, StudentError
from cusa.data.records import Dataset
from cusa.eval.metrics.validation import validation_scores
from cusa.train.config_building import build_config
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import Checkpoints, load_run, read_metrics
from cusa.train.saving.student_folder import load_saved
from cusa.train.trainer import Trainer
from tests.helpers import (
    Fault,
    ForkedCommand,
    add_teacher,
    fault_of,
    kill_at,
    make_pairs,
    make_tiny_clip,
    records,
    run_error,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)
from tests.train.pictures import precompute_pictures, student_options

SMALL = ("--set", "student.hidden_dim=16", "--set", "student.embed_dim=8")
SHORT = ("--batch-size", 16, "--epochs", 2, "--set", "train.log_every=1")


@pytest.fixture(scope="module")
def first(index, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    run_ok(
        "train", "--embeddings", index, "--student", "adapter", *SMALL, *SHORT, "--run-dir", run_dir
    )
    return run_dir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A store of pictures, and a trained CLIP with heads: the run and its export."""
    folder = tmp_path_factory.mktemp("pictures")
    manifest, clip, store = (
        make_pairs(folder / "data", n=12),
        make_tiny_clip(folder / "clip"),
        folder / "store.h5",
    )
    precompute_pictures(manifest, clip, store)
    args = (*student_options(store, clip, folder / "run", epochs=1, batch_size=6), "--workers", 0)
    run_ok("train", *args, "--set", "optim.lr=1e-3")
    run_ok("train", "export", "--run", folder / "run", "--to", "hf", "--out", folder / "exported")
    shutil.rmtree(clip)  # nobody needs it any more
    return folder


def _trainer(index, init, run_dir, **student):
    config = {"data": {"embeddings": str(index)}, "student": {"init": str(init), **student}}
    return Trainer(
        build_config(config),
        Processes("cpu"),
        0,
        run_dir,
        resume=False,
        validation_scores=validation_scores,
    )


def _same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("source", ["first", "first/best"])
def test_an_adapter_begins_with_the_weights_of_another(index, first, tmp_path, source):
    """Its student, sizes and normaliser need not be given again; temperatures and
    schedule are new.
    """
    init = first.parent / source
    trainer = _trainer(index, init, tmp_path / "run", name="adapter", hidden_dim=16, embed_dim=8)
    _same(trainer.setup.step.student.state_dict(), load_saved(first).student.state_dict())
    run_ok("train", "--embeddings", index, "--init", init, *SHORT, "--run-dir", tmp_path / "run")
    config, provenance = load_run(tmp_path / "run")
    assert (config.student.name, config.student.hidden_dim, config.student.embed_dim) == (
        "adapter",
        16,
        8,
    )
    assert config.student.init == str(init)
    beginning = provenance.beginning
    assert (beginning.path, beginning.dataset, beginning.epoch, beginning.step) == (
        str(init),
        "made-up",
        2,
        10,
    )
    lines = read_metrics(tmp_path / "run")
    assert (lines[0]["step"], lines[0]["tau"]) == (1, pytest.approx(0.05, abs=2e-3))
    assert lines[0]["lr"] == read_metrics(first)[0]["lr"]
    assert lines[0]["loss"] < read_metrics(first)[0]["loss"]
    assert beginning.sha256 in (tmp_path / "run" / "best" / "README.md").read_text()


def test_killed_before_its_first_checkpoint_it_begins_again_with_the_same(index, first, tmp_path):
    """And with a checkpoint, it goes on although what it began with is gone."""
    shutil.copytree(first, tmp_path / "init")
    args = ("--embeddings", index, "--init", tmp_path / "init", *SHORT)
    run_ok("train", *args, "--run-dir", tmp_path / "whole")
    for step, run_dir in ((2, tmp_path / "early"), (7, tmp_path / "late")):
        patch = kill_at(Trainer, "_train_on", step)
        done = ForkedCommand("train", *args, "--run-dir", run_dir, patch=patch).wait()
        assert done.returncode == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", tmp_path / "early")
    shutil.rmtree(tmp_path / "init")
    run_ok("train", "--resume", "--run-dir", tmp_path / "late")
    whole = Checkpoints(tmp_path / "whole").newest()[0]
    for name in ("early", "late"):
        _same(Checkpoints(tmp_path / name).newest()[0].tensors, whole.tensors)
        assert load_run(tmp_path / name)[1].beginning == load_run(tmp_path / "whole")[1].beginning
    assert run_fault("train", "--resume", "--run-dir", tmp_path / "late", "--init", first) == Fault(
        SettingError, name="student.init"
    )


def test_a_student_that_has_changed_since_is_refused(index, first, tmp_path, monkeypatch):
    shutil.copytree(first, tmp_path / "init")
    args = (
        "--embeddings",
        index,
        "--init",
        tmp_path / "init",
        *SHORT,
        "--run-dir",
        tmp_path / "run",
    )
    monkeypatch.setattr(
        Trainer, "_train_on", lambda *_: (_ for _ in ()).throw(CusaError("stopped"))
    )
    run_error("train", *args)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "init")
    run_ok(
        "train",
        "--embeddings",
        index,
        "--student",
        "adapter",
        *SMALL,
        *SHORT,
        "--seed",
        5,
        "--run-dir",
        tmp_path / "init",
    )
    assert run_fault("train", "--resume", "--run-dir", tmp_path / "run") == Fault(
        RunError, path=tmp_path / "init"
    )


def test_another_kind_or_size_of_student_is_refused(index, first, tmp_path):
    for more in (
        {"name": "adapter", "hidden_dim": 16},
        {"name": "adapter", "hidden_dim": 32, "embed_dim": 8},
        {"name": "some/model"},
    ):
        with pytest.raises(StudentError) as error:
            _trainer(index, first, tmp_path / "run", **more)
        assert fault_of(error.value) == Fault(StudentError, path=first)
    args = ("--embeddings", index, *SHORT, "--run-dir", tmp_path / "run")
    assert run_fault("train", *args, "--init", first, "--student", "a/b") == Fault(
        StudentError, path=first
    )
    for wrong in (tmp_path / "nothing", index.parent, index):
        run_error("train", *args, "--init", wrong)
    assert run_fault("train", *args, "--set", "student.init=[1]") == Fault(
        SettingError, name="student.init"
    )
    assert not (tmp_path / "run").exists()


def test_another_encoders_rows_of_the_same_size_are_refused(first, tmp_path):
    """The weights would fit, and mean nothing."""
    dataset = Dataset(
        "made-up", tmp_path, {s: records(s, n) for s, n in (("train", 40), ("val", 10))}
    )
    rows = {"train": unit_rows(40, 16, 0), "val": unit_rows(10, 16, 1)}
    other = tmp_path / "store.h5"
    add_teacher(other, dataset, "vision", settings("image", 16, weights_sha256="1" * 64), rows)
    texts = {split: unit_rows(2 * len(values), 16, 3) for split, values in rows.items()}
    add_teacher(other, dataset, "words", settings("text", 16, dtype="float32"), texts)
    assert run_fault(
        "train", "--embeddings", other, "--init", first, *SHORT, "--run-dir", tmp_path / "run"
    ) == Fault(StudentError, path=first)


def test_a_damaged_student_is_refused(index, first, tmp_path):
    shutil.copytree(first / "best", tmp_path / "init")
    weights = tmp_path / "init" / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError) as error:
        _trainer(
            index, tmp_path / "init", tmp_path / "run", name="adapter", hidden_dim=16, embed_dim=8
        )
    assert error.value.path == weights


@pytest.mark.parametrize("source", ["run", "exported"])
def test_a_dual_encoder_begins_with_a_run_or_an_export(pictures, tmp_path, source):
    store, init = pictures / "store.h5", pictures / source
    before = load_saved(pictures / "run")
    trainer = _trainer(store, init, tmp_path / "run", name=before.origin.config.student.name)
    _same(trainer.setup.step.student.state_dict(), before.student.state_dict())
    args = ("--embeddings", store, "--init", init, "--batch-size", 6, "--epochs", 1, "--workers", 0)
    run_ok("train", *args, "--run-dir", tmp_path / "run")
    assert load_saved(tmp_path / "run").origin.provenance.beginning.path == str(init)
    assert "best epoch" in run_ok("train", "--resume", "--run-dir", tmp_path / "run")


def test_a_grid_of_runs_begins_with_one_student_or_compares_several(index, first, tmp_path):
    args = ("--embeddings", index, *SHORT, "--run-dir", tmp_path / "sweep")
    run_ok("train", *args, "--init", first, "--sweep", "seed=0,1")
    for seed in (0, 1):
        assert load_run(tmp_path / "sweep" / f"seed-{seed}")[1].beginning.path == str(first)
    args = ("--embeddings", index, *SHORT, "--run-dir", tmp_path / "several")
    run_ok("train", *args, "--sweep", f"init={first},{tmp_path / 'sweep' / 'seed-0'}")
    assert len(list((tmp_path / "several").glob("init-*/best/student.safetensors"))) == 2

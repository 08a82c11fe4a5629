"""--steps and --validate-every: a run that counts steps takes and validates exactly those.

Epochs have five steps here.
"""

import shutil
import signal

import pytest
import torch

from cusa.data.errors import RunError, SettingError
from cusa.train.command_settings import Given, new_settings
from cusa.train.config_building import build_config, override
from cusa.train.length import RunLength, refuse_endless_warmup
from cusa.train.saving.run_dir import Checkpoints, load_run, read_metrics
from cusa.train.saving.run_progress import Progress, ProgressInEpochs
from cusa.train.saving.student_folder import load_origin, load_saved
from cusa.train.schedule import learning_rate
from cusa.train.trainer import Trainer
from tests.helpers import ADAPTER, Fault, ForkedCommand, kill_at, run_fault, run_ok


def _args(index, run_dir, *more):
    """Eleven steps, validated after 3, 6, 9 and the last; a checkpoint at every fourth."""
    steps = ("--steps", 11, "--validate-every", 3, "--checkpoint-steps", 4)
    rest = ("--batch-size", 16, *steps, "--warmup", 0, "--set", "train.log_every=1")
    return ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *rest, *more)


def _lines(run_dir, *kinds):
    lines = [line for line in read_metrics(run_dir) if line["kind"] in kinds]
    for line in lines:
        line.pop("samples_per_s", None)
    return lines


def _steps(run_dir, kind):
    return [line["step"] for line in _lines(run_dir, kind)]


def _assert_same(one, two):
    assert _lines(one, "train", "val") == _lines(two, "train", "val")
    first, second = (Checkpoints(run_dir).newest()[0] for run_dir in (one, two))
    assert first.progress == second.progress
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    best = [load_saved(run_dir).student.state_dict() for run_dir in (one, two)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    out = run_ok("train", *_args(index, run_dir))
    assert "11 steps, 2.2 epochs of 5 steps, validated every 3 steps" in out
    assert "best step " in out
    return run_dir


def test_exactly_so_many_steps_are_taken_and_validated(whole):
    assert _steps(whole, "train") == list(range(1, 12))
    assert _steps(whole, "val") == [3, 6, 9, 11]
    assert [line["epoch"] for line in _lines(whole, "val")] == [3 / 5, 6 / 5, 9 / 5, 11 / 5]
    config = load_run(whole)[0]
    assert (config.train.steps, config.train.epochs) == (11, None)
    assert _lines(whole, "train")[-1]["lr"] == config.optim.min_lr
    last = Checkpoints(whole).newest()[0]
    assert (last.progress.step, last.progress.validated_step) == (11, 11)
    origin = load_origin(whole)
    assert (origin.step, origin.epoch) == (last.progress.best_step, origin.step / 5)
    card = (whole / "best" / "README.md").read_text()
    assert f"| steps | {origin.step} of 11 ({origin.epoch:.4g} epochs) |" in card


@pytest.mark.parametrize(
    ("steps", "every", "validated"),
    [(1, 3, [1]), (5, 5, [5]), (7, 20, [7]), (6, None, [5, 6]), (3, 1, [1, 2, 3])],
)
def test_odd_lengths_are_exact(index, tmp_path, steps, every, validated):
    options = () if every is None else ("--validate-every", every)
    common = ("--batch-size", 16, "--warmup", 0, "--set", "train.log_every=1")
    run_dir = tmp_path / "run"
    arguments = ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *common, *options)
    run_ok("train", *arguments, "--steps", steps)
    assert _steps(run_dir, "train") == list(range(1, steps + 1))
    assert _steps(run_dir, "val") == validated


@pytest.mark.parametrize(
    ("where", "step", "workers"),
    [
        *(("_train_on", step, 0) for step in (2, 3, 4, 5, 8, 9, 10)),
        ("_train_on", 6, 2),
        *(("_validate", step, 0) for step in (3, 6, 9, 11)),
    ],
)
def test_killed_around_a_validation_or_an_epochs_end_it_goes_on_exactly(
    index, whole, tmp_path, where, step, workers
):
    run_dir = tmp_path / "run"
    patch = kill_at(Trainer, where, step)
    killed = ForkedCommand("train", *_args(index, run_dir, "--workers", workers), patch=patch)
    assert killed.wait().returncode == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", run_dir)
    _assert_same(whole, run_dir)


def test_a_signal_before_a_validation_keeps_the_step_and_validates_later(index, whole, tmp_path):
    patch = kill_at(Trainer, "_validate", 6, signal.SIGTERM)
    stopped = ForkedCommand("train", *_args(index, tmp_path / "run"), patch=patch).wait()
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "step 6 is kept" in stopped.stderr
    assert _steps(tmp_path / "run", "val") == [3]
    out = run_ok("train", "--resume", "--run-dir", tmp_path / "run")
    assert "resumed   after step 6" in out
    _assert_same(whole, tmp_path / "run")


def test_a_run_is_extended_under_its_schedule_and_not_shortened_below_its_step(
    index, whole, tmp_path
):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    assert run_fault("train", "--resume", "--run-dir", run_dir, "--steps", 10) == Fault(
        SettingError, name="train.steps"
    )
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--steps", 16)
    assert "16 steps instead of 11; the schedule stays that of 11: from step 12 on" in out
    config = load_run(run_dir)[0]
    assert (config.train.steps, config.optim.schedule_steps) == (16, 11)
    assert _steps(run_dir, "val") == [3, 6, 9, 11, 12, 15, 16]
    assert {line["lr"] for line in _lines(run_dir, "train")[11:]} == {config.optim.min_lr}
    (change,) = _lines(run_dir, "steps")
    assert (change["step"], change["steps"]) == (11, 16)
    # Epochs may take over, too.
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 4)
    assert "4 epochs instead of 16 steps; the schedule stays that of 11 steps" in out
    assert _steps(run_dir, "train") == list(range(1, 21))
    planned = tmp_path / "planned"
    run_ok("train", *_args(index, planned, "--steps", 20, "--set", "optim.schedule_steps=11"))
    last = [Checkpoints(folder).newest()[0].tensors for folder in (run_dir, planned)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_where_validations_are_may_not_change(whole):
    assert run_fault("train", "--resume", "--run-dir", whole, "--validate-every", 4) == Fault(
        SettingError, name="train.validate_every"
    )


def test_a_run_of_epochs_may_validate_by_steps(index, tmp_path):
    epochs = ("--epochs", 2, "--validate-every", 4)
    rest = ("--batch-size", 16, "--warmup", 0, "--set", "train.log_every=1")
    run_ok("train", "--embeddings", index, "--run-dir", tmp_path, *ADAPTER, *rest, *epochs)
    assert _steps(tmp_path, "val") == [4, 8, 10]
    run_ok("eval", "--run", tmp_path, "--split", "test", "--bootstrap", 0)
    page = (tmp_path / "eval" / "report.html").read_text()
    assert "by step" in page
    assert "best step" in page


def test_patience_counts_validations(index, tmp_path):
    too_small = ("--set", "optim.lr=1e-12", "--set", "optim.min_lr=0")
    out = run_ok("train", *_args(index, tmp_path / "run", "--patience", 2, *too_small))
    assert "stopped early after step 9" in out
    assert _steps(tmp_path / "run", "val") == [3, 6, 9]


def test_a_sweep_over_steps(index, tmp_path):
    arguments = _args(index, tmp_path / "sweep", "--sweep", "seed=0,1")
    run_ok("train", *arguments, "--steps", 4)
    assert _steps(tmp_path / "sweep" / "seed-1", "val") == [3, 4]
    assert "RSUM, at the end" in (tmp_path / "sweep" / "sweep.md").read_text()


def test_one_length_is_given_and_a_stronger_one_replaces_a_weaker_one(index, tmp_path):
    assert run_fault("train", *_args(index, tmp_path / "run", "--epochs", 2)) == Fault(
        SettingError, name="train.steps"
    )
    assert not (tmp_path / "run").exists()
    file = tmp_path / "settings.yaml"
    file.write_text("train: {epochs: 9}\noptim: {warmup_epochs: 2}\n")
    steps = {"train": {"steps": 7}, "optim": {"warmup_steps": 0}}
    config = new_settings(Given(index, "adapter", file, steps, {}), {})
    assert (config.train.steps, config.train.epochs) == (7, None)
    assert (config.optim.warmup_steps, config.optim.warmup_epochs) == (0, 0)
    assert override({"train": {"steps": 7}}, {"train": {"epochs": 3}})["train"] == {
        "steps": None,
        "epochs": 3,
    }
    for section, values in {
        "train": {"epochs": 3, "steps": 7},
        "optim": {"schedule_epochs": 3, "schedule_steps": 7},
    }.items():
        with pytest.raises(SettingError) as error:
            build_config({section: values})
        assert error.value.name == f"{section}.{list(values)[1]}"


def _config(steps, **optim):
    return build_config({"optim": {"lr": 1.0, "min_lr": 0.1, **optim}, "train": {"steps": steps}})


def test_the_schedule_follows_the_steps():
    """The same rates as three epochs of four steps have, the first of them a warm-up."""
    in_epochs = build_config(
        {"optim": {"lr": 1.0, "min_lr": 0.1, "warmup_epochs": 1}, "train": {"epochs": 3}}
    )
    in_steps = _config(12, warmup_steps=4)
    for step in range(14):
        assert learning_rate(step, 5, in_steps) == learning_rate(step, 4, in_epochs)
    # By epoch: two and a half epochs of four steps, cos(pi 0 / 2.5), cos(pi / 2.5), ...
    by_epoch = [learning_rate(step, 4, _config(10, schedule="epoch")) for step in range(10)]
    expected = [1.0] * 4 + [0.689058] * 4 + [0.185942] * 2
    assert by_epoch == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("optim", "name"),
    [({"warmup_epochs": 3}, "optim.warmup_epochs"), ({"warmup_steps": 13}, "optim.warmup_steps")],
)
def test_a_warm_up_beyond_the_last_step_is_refused(optim, name):
    with pytest.raises(SettingError) as error:
        refuse_endless_warmup(_config(12, **optim), steps_per_epoch=5)
    assert error.value.name == name
    refuse_endless_warmup(_config(15, **optim), steps_per_epoch=5)


@pytest.mark.parametrize(
    "progress", [Progress(7, 3, 3, 1.0, 0), Progress(3, 4, 0, None, 0), Progress(3, 3, 4, 1.0, 0)]
)
def test_progress_that_contradicts_itself_is_refused(progress):
    with pytest.raises(RunError):
        RunLength(build_config({"train": {"validate_every": 3}}), 5).refuse_contradictory(progress)


def test_progress_of_earlier_versions_is_read_in_steps():
    earlier = ProgressInEpochs(epoch=3, step=17, best_epoch=1, best_rsum=20.0)
    assert earlier.in_steps(5) == Progress(17, 15, 5, 20.0, 2)

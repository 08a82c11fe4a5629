"""--resume --epochs N: more epochs, or fewer than planned.

The schedule stays as it was, and the run says so.
"""

import pytest
import torch

from cusa.data.errors import SettingError
from cusa.eval.metrics.validation import validation_scores
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import Checkpoints, load_run, read_metrics
from cusa.train.saving.sessions import read_sessions
from cusa.train.saving.student_folder import load_saved
from cusa.train.trainer import Trainer
from tests.helpers import ADAPTER, Fault, run_error, run_fault, run_ok


def _args(index, run_dir, *more):
    rest = ("--batch-size", 16, "--set", "train.log_every=1", "--set", "optim.min_lr=1e-4")
    preset = ("--preset", "adapter-published")  # its best epoch is known
    return ("--embeddings", index, "--run-dir", run_dir, *preset, *ADAPTER, *rest, *more)


@pytest.fixture(scope="module")
def planned(index, tmp_path_factory):
    """Five epochs, whose schedule was planned to take three."""
    run_dir = tmp_path_factory.mktemp("runs") / "planned"
    run_ok("train", *_args(index, run_dir, "--epochs", 5, "--set", "optim.schedule_epochs=3"))
    return run_dir


def _assert_same_run(one, two):
    lines = [[line for line in read_metrics(run) if line["kind"] != "epochs"] for run in (one, two)]
    for line in (*lines[0], *lines[1]):
        line.pop("samples_per_s", None)
    assert lines[0] == lines[1]
    tensors = [Checkpoints(run).newest()[0].tensors for run in (one, two)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    best = [load_saved(run).student.state_dict() for run in (one, two)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_finished_run_goes_on_at_the_least_learning_rate(index, planned, tmp_path):
    """As if it had been planned so: bit for bit."""
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "--epochs", 3))
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 5)
    assert "5 epochs instead of 3; the schedule stays that of 3" in out
    assert "from epoch 4 on the learning rate is 0.0001" in out
    config = load_run(run_dir)[0]
    assert (config.train.epochs, config.optim.schedule_epochs) == (5, 3)
    rates = [line["lr"] for line in read_metrics(run_dir) if line["kind"] == "train"]
    assert (len(rates), rates[-10:]) == (25, [1e-4] * 10)
    (change,) = (line for line in read_metrics(run_dir) if line["kind"] == "epochs")
    assert (change["step"], change["epoch"], change["epochs"]) == (15, 3, 5)
    _assert_same_run(run_dir, planned)
    assert "instead of" not in run_ok("train", "--resume", "--run-dir", run_dir)
    assert len([line for line in read_metrics(run_dir) if line["kind"] == "epochs"]) == 1
    # A session that takes no step is none.
    assert len(read_sessions(run_dir).sessions) == 2
    run_ok("eval", "--run", run_dir, "--bootstrap", 10)


def test_so_does_one_that_is_not_finished_and_twice_is_once(index, planned, tmp_path):
    run_dir = tmp_path / "run"
    plain = Trainer._train_on

    def stopped(self, batch):
        if self.progress.step == 8:
            raise SettingError("stopped")
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_on", stopped)
        run_error("train", *_args(index, run_dir, "--epochs", 3, "--checkpoint-steps", 2))
    out = run_ok(
        "train", *_args(index, run_dir, "--resume", "--epochs", 4, "--checkpoint-steps", 2)
    )
    assert "4 epochs instead of 3" in out
    assert "step 3 of the next" in out
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--set", "train.epochs=5")
    assert "5 epochs instead of 4; the schedule stays that of 3" in out
    _assert_same_run(run_dir, planned)


def test_a_run_may_end_early_but_not_before_where_it_is(index, planned, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "--epochs", 3))
    run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 4)
    assert run_fault("train", "--resume", "--run-dir", run_dir, "--epochs", 3) == Fault(
        SettingError, name="train.epochs"
    )
    assert load_run(run_dir)[0].train.epochs == 4  # nothing was written
    out = run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 5)
    assert "5 epochs instead of 4" in out
    _assert_same_run(run_dir, planned)


def test_the_error_names_the_setting(index, tmp_path):
    run_ok("train", *_args(index, tmp_path / "run", "--epochs", 2))
    config = load_run(tmp_path / "run")[0]
    fewer = config.__class__(
        config.data, config.student, config.loss, config.optim, _with(config.train, epochs=1)
    )
    with pytest.raises(SettingError) as error:
        Trainer(
            fewer,
            Processes("cpu"),
            0,
            tmp_path / "run",
            resume=True,
            validation_scores=validation_scores,
        )
    assert error.value.name == "train.epochs"


def _with(section, **changes):
    from dataclasses import replace

    return replace(section, **changes)


def test_where_the_cosine_ends_at_zero_more_epochs_are_refused(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "--epochs", 2, "--set", "optim.min_lr=0"))
    assert run_fault("train", "--resume", "--run-dir", run_dir, "--epochs", 3) == Fault(
        SettingError, name="train.epochs"
    )
    assert "best epoch" in run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 2)


def test_other_settings_are_still_refused_beside(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "--epochs", 1))
    assert run_fault(
        "train", "--resume", "--run-dir", run_dir, "--epochs", 2, "--seed", 3
    ) == Fault(SettingError, name="train.seed")
    assert run_fault(
        "train", "--resume", "--run-dir", run_dir, "--epochs", 2, "--set", "optim.schedule_epochs=2"
    ) == Fault(SettingError, name="optim.schedule_epochs")


def test_a_sweep_that_is_run_again_with_more_epochs_goes_on(index, tmp_path):
    args = _args(index, tmp_path / "sweep", "--sweep", "seed=0,1")
    run_ok("train", *args, "--epochs", 1)
    out = run_ok("train", *args, "--epochs", 2)
    assert out.count("2 epochs instead of 1") == 2
    assert load_saved(tmp_path / "sweep" / "seed-1").origin.config.train.epochs == 2

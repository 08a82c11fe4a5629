"""Runs as TensorBoard files, read by TensorBoard itself."""

import time

import pytest

from cusa.data.errors import CusaError
from cusa.train.saving.run_dir import read_metrics
from cusa.train.trainer import Trainer
from tests.helpers import make_store, run_error, run_ok
from tests.train.pictures import student_options


def test_tensorboard_files_hold_what_the_log_does(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    index, run_dir = make_store(tmp_path / "store"), tmp_path / "run"
    args = (
        *student_options(index, "adapter", run_dir, epochs=2, batch_size=16),
        "--report-to",
        "tensorboard",
    )
    run_ok("train", *args, "--set", "train.log_every=2")
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    lines = read_metrics(run_dir)
    for section, name in (("train", "loss"), ("train", "tau"), ("train", "lr"), ("val", "rsum")):
        logged = [(m["step"], m[name]) for m in lines if m["kind"] == section]
        found = [(e.step, e.value) for e in events.Scalars(f"{section}/{name}")]
        assert [s for s, _ in found] == [s for s, _ in logged]
        assert [v for _, v in found] == pytest.approx([v for _, v in logged], rel=1e-6)


def test_a_resumed_run_has_no_step_twice_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    index, run_dir = make_store(tmp_path / "store"), tmp_path / "run"
    args = (
        *student_options(index, "adapter", run_dir, epochs=2, batch_size=16),
        "--report-to",
        "tensorboard",
    )
    args = (*args, "--set", "train.log_every=1")
    plain = Trainer._train_on

    def stopped(self, batch):
        if self.progress.step == 8:
            raise CusaError("stopped")  # three steps after the checkpoint
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_on", stopped)
        run_error("train", *args)
    time.sleep(1.1)  # files are told apart by the second
    run_ok("train", "--resume", "--run-dir", run_dir)
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 11))


def test_tensorboard_files_that_cannot_be_written_end_and_training_goes_on(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "flush", full)
    args = (
        "--embeddings",
        make_store(tmp_path / "store"),
        "--student",
        "adapter",
        "--batch-size",
        16,
        "--epochs",
        2,
    )
    out = run_ok("train", *args, "--run-dir", tmp_path / "run", "--report-to", "tensorboard")
    assert out.count("Warning: ") == 1

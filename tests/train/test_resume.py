"""Stopped anywhere, a run goes on as if nothing had been.

What is torn, full or not finite is said and survived.
"""

import errno
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from cusa.data.errors import DataError, ImageError, RunError, StudentError, WorkerError
from cusa.train.commands import resume_command
from cusa.train.saving import run_dir as run_files
from cusa.train.saving.run_dir import Checkpoints, read_metrics
from cusa.train.saving.student_folder import load_saved
from cusa.train.saving.tensors import load_tensors, save_tensors
from cusa.train.trainer import Trainer
from tests.helpers import (
    ADAPTER,
    Fault,
    ForkedCommand,
    fault_of,
    kill_at,
    make_pairs,
    make_store,
    make_tiny_clip,
    run,
    run_error,
    run_failure,
    run_fault,
    run_ok,
)
from tests.train.pictures import precompute_pictures, student_options
from tests.train.same_runs import assert_same_run, lines_but_speed


def _args(index, run_dir, *more):
    """Three epochs of five steps, dropout included, a checkpoint every second step."""
    rest = (
        "--batch-size",
        16,
        "--epochs",
        3,
        "--set",
        "train.log_every=1",
        "--checkpoint-steps",
        2,
    )
    preset = ("--preset", "adapter-published")  # its best epoch is known
    return ("--embeddings", index, "--run-dir", run_dir, *preset, *ADAPTER, *rest, *more)


def _interrupted(args, step, number=signal.SIGKILL, where="_train_on", times=1):
    """Run the command in a process that gets a signal before a step (counted from 0) has begun."""
    patch = kill_at(Trainer, where, step, number, times)
    return ForkedCommand("train", *args, patch=patch).wait()


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    run_ok("train", *_args(index, run_dir))
    return run_dir


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (8, 0), (9, 1), (13, 0)])
def test_killed_at_a_step_a_resumed_run_equals_an_undisturbed_one(
    index, whole, tmp_path, step, workers
):
    """SIGKILL and a torn log: before the first checkpoint, within epochs, with a worker."""
    run_dir = tmp_path / "part"
    done = _interrupted(_args(index, run_dir, "--workers", workers), step)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with (run_dir / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "tra')
    out = run_ok("train", "--resume", "--run-dir", run_dir)
    kept = step - step % 2 if step % 5 else step
    expected = f"resumed   after epoch {kept // 5}, step {kept % 5} of the next"
    assert (expected in out) == (kept > 0), out
    assert_same_run(whole, run_dir)
    out = run_ok("train", "--resume", "--run-dir", run_dir)
    assert "resumed   after epoch 3, its last one: nothing is left to train" in out
    assert "best epoch" in out
    assert_same_run(whole, run_dir)


def test_killed_while_validating_it_validates_again(index, whole, tmp_path):
    args = _args(index, tmp_path / "part", "--checkpoint-steps", 5)
    assert _interrupted(args, 10, where="_validate").returncode == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", tmp_path / "part")
    assert_same_run(whole, tmp_path / "part")


@pytest.mark.parametrize(
    ("number", "times", "status"),
    [(signal.SIGTERM, 1, 143), (signal.SIGTERM, 2, 143), (signal.SIGINT, 1, 130)],
)
def test_a_signal_leaves_a_checkpoint_and_its_own_status(
    index, whole, tmp_path, number, times, status
):
    """Also where SIGTERM comes twice: a scheduler sends it to all, and then torchrun does."""
    run_dir = tmp_path / "part"
    done = _interrupted(_args(index, run_dir, "--checkpoint-steps", 1000), 6, number, times=times)
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == [
        f"Error: stopped by {number.name}: step 7 is kept; go on with: {resume_command(run_dir)}"
    ]
    assert "step 2 of the next" in run_ok("train", "--resume", "--run-dir", run_dir)
    assert_same_run(whole, run_dir)


def test_a_signal_while_validating_leaves_a_checkpoint(index, whole, tmp_path):
    run_dir = tmp_path / "part"
    done = _interrupted(
        _args(index, run_dir, "--checkpoint-steps", 1000), 5, signal.SIGTERM, "_validate"
    )
    assert done.returncode == 143
    assert "step 5 is kept" in done.stderr
    assert [m["kind"] for m in lines_but_speed(run_dir)] == ["train"] * 5
    run_ok("train", "--resume", "--run-dir", run_dir)
    assert_same_run(whole, run_dir)


def test_a_torn_checkpoint_is_recognised_and_the_one_before_it_taken(index, whole, tmp_path):
    run_dir = tmp_path / "part"
    _interrupted(_args(index, run_dir), 9)
    older, newer = Checkpoints(run_dir).paths()
    assert [p.stem for p in (older, newer)] == ["step-000000006", "step-000000008"]
    content = bytearray(newer.read_bytes())
    content[-40] ^= 1  # within a tensor: the file's own structure is whole
    newer.write_bytes(content)
    (newer.parent / f".{newer.name}.0a.tmp").write_bytes(b"half")
    out = run_ok("train", "--resume", "--run-dir", run_dir)
    assert f"{newer} is damaged (its checksum differs)" in out
    assert "step 1 of the next" in out
    assert_same_run(whole, run_dir)
    assert not list(newer.parent.glob(".*.tmp"))


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir))
    one, two = Checkpoints(run_dir).paths()
    one.write_bytes(one.read_bytes()[:100])
    content = two.read_bytes()
    assert content.count(b'"best_step\\": 15') == 1  # metadata are under the checksum, too
    two.write_bytes(content.replace(b'"best_step\\": 15', b'"best_step\\": 10'))
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    for line in (run_error("train", "--resume", "--run-dir", run_dir),
                 run_error("eval", "--run", run_dir, "--checkpoint", "last")):  # fmt: skip
        assert (
            f"no checkpoint of {run_dir} is whole: {two} is damaged (its checksum differs)" in line
        )
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


def test_what_a_killed_process_left_half_written_goes(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "--epochs", 1))
    left = [run_dir / ".config.yaml.0a.tmp", run_dir / "best" / ".student.safetensors.0a.tmp"]
    for path in left:
        path.write_bytes(b"half")
    run_ok("train", "--resume", "--run-dir", run_dir)
    assert not [p for p in left if p.exists()]


@pytest.mark.parametrize("missing", ["config.yaml", "run.json"])
def test_killed_before_its_own_files_are_whole_it_begins_anew(index, whole, tmp_path, missing):
    """Settings are written last: without them nothing has begun that could be resumed."""
    run_dir = tmp_path / "part"
    plain = run_files.atomic_file

    def killed(path):
        if path.name == missing:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(path)

    def patch():
        run_files.atomic_file = killed

    done = ForkedCommand("train", *_args(index, run_dir), patch=patch).wait()
    assert done.returncode == -signal.SIGKILL
    run_ok("train", *_args(index, run_dir, "--resume"))
    assert_same_run(whole, run_dir)


def test_checkpoints_by_time(index, tmp_path):
    args = [a for a in _args(index, tmp_path / "a") if a not in ("--checkpoint-steps", 2)]
    assert _interrupted((*args, "--checkpoint-minutes", 0), 3).returncode < 0
    assert [p.stem[-1] for p in Checkpoints(tmp_path / "a").paths()] == ["2", "3"]
    args = [tmp_path / "b" if a == tmp_path / "a" else a for a in args]
    assert _interrupted(args, 8).returncode < 0
    assert [p.stem[-1] for p in Checkpoints(tmp_path / "b").paths()] == [
        "5"
    ]  # the epoch's end alone


def test_half_precision_goes_on_exactly(index, tmp_path):
    """With the gradient scaler's state."""
    args = ("--precision", "fp16", "--epochs", 2)
    run_ok("train", *_args(index, tmp_path / "whole", *args))
    assert _interrupted(_args(index, tmp_path / "part", *args), 7).returncode < 0
    run_ok("train", "--resume", "--run-dir", tmp_path / "part")
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    one, two = (Checkpoints(tmp_path / name).newest()[0].scaler for name in ("whole", "part"))
    assert one == two
    assert one["_growth_tracker"] > 0


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(
    index, tmp_path, monkeypatch
):
    run_dir = tmp_path / "run"
    plain = Trainer._train_on

    def step(self, batch):
        if self.progress.step == 7:
            self.setup.step.student.image_heads["uni"][1].weight.register_hook(
                lambda gradient: gradient * float("nan")
            )
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "_train_on", step)
    assert run_fault("train", *_args(index, run_dir, "--checkpoint-steps", 1)) == Fault(
        StudentError
    )
    tensors = load_tensors(Checkpoints(run_dir).paths()[-1])[0]
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_a_full_disk_is_said_and_survived(index, whole, tmp_path, monkeypatch):
    """Checkpoints, log and best student fail in epoch 2, and work again in epoch 3."""
    from cusa.train.saving import student_folder as saved

    run_dir = tmp_path / "run"
    full = [False]

    def failing(plain):
        def save(*args, **kwargs):
            if full[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return plain(*args, **kwargs)

        return save

    plain_step = Trainer._train_on

    def step(self, batch):
        full[0] = 5 <= self.progress.step < 10
        if self.progress.step == 9:
            assert [p.stem[-1] for p in Checkpoints(run_dir).paths()] == ["4", "5"]
        return plain_step(self, batch)

    monkeypatch.setattr(Trainer, "_train_on", step)
    monkeypatch.setattr(run_files, "save_tensors", failing(save_tensors))
    monkeypatch.setattr(saved, "save_tensors", failing(save_tensors))
    monkeypatch.setattr(run_files.MetricsLog, "append", failing(run_files.MetricsLog.append))
    result = run("train", *_args(index, run_dir))
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.output.splitlines() if line.startswith("Warning: ")]
    assert any(
        "checkpoint of step 6 could not be written (No space left on device)" in w for w in warnings
    )
    assert any("that of step 5 stays" in w for w in warnings)
    assert any("epoch 2 is the best so far and could not be saved" in w for w in warnings)
    assert any("log could not be written" in w for w in warnings)
    one, two = (load_tensors(Checkpoints(r).paths()[-1])[0] for r in (whole, run_dir))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 3


@pytest.mark.parametrize("what", ["checkpoints", "best"])
def test_what_is_lost_at_the_end_is_an_error(index, tmp_path, monkeypatch, what):
    from cusa.train.saving import student_folder as saved

    def full(path, *_args):
        if what == "checkpoints" or _args[-1]["epoch"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_tensors(path, *_args)

    monkeypatch.setattr(run_files if what == "checkpoints" else saved, "save_tensors", full)
    fault = run_fault("train", *_args(index, tmp_path / "run"))
    assert fault == Fault(RunError, path=tmp_path / "run")
    if what == "best":
        assert load_saved(tmp_path / "run").origin.epoch == 2


@pytest.mark.parametrize("workers", [1, 4])
def test_a_reader_that_is_killed_is_an_error_with_a_way_on(
    index, whole, tmp_path, monkeypatch, workers
):
    plain = Trainer._train_on

    def step(self, batch):
        if self.progress.step == 7:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
        return plain(self, batch)

    args = _args(index, tmp_path / "run", "--workers", workers)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_on", step)
        error = run_failure("train", *args)
    assert isinstance(error, WorkerError)
    assert f"go on with: {resume_command(tmp_path / 'run')}" in str(error)
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_one_that_is_killed_while_validating_stops_the_run_and_keeps_it(
    index, tmp_path, monkeypatch
):
    def read(*_arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("cusa.train.encode_split._ByRows.__getitem__", read)
    error = run_failure("train", *_args(index, tmp_path / "run", "--workers", 2))
    assert isinstance(error, WorkerError)
    assert error.name.startswith("process ")


def test_a_relative_student_is_found_from_anywhere(tmp_path, monkeypatch):
    manifest = make_pairs(tmp_path / "data", n=16)
    make_tiny_clip(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    precompute_pictures(manifest, "clip", "store.h5")
    args = student_options("store.h5", "clip", "run", epochs=1, batch_size=6)
    assert _interrupted(args, 1).returncode == -signal.SIGKILL  # before the first checkpoint
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")
    (tmp_path / "run" / "best" / "config.json").unlink()
    assert run_fault("train", "--resume", "--run-dir", tmp_path / "run") == Fault(
        RunError, path=tmp_path / "run/best"
    )


def test_a_copy_of_a_checkpoint_is_left_alone(index, whole, tmp_path):
    run_dir = tmp_path / "run"
    assert _interrupted(_args(index, run_dir), 9).returncode < 0
    path = Checkpoints(run_dir).paths()[0]
    mine = path.with_name("step-mine.safetensors")
    mine.write_bytes(path.read_bytes())
    run_ok("train", "--resume", "--run-dir", run_dir)
    assert_same_run(whole, run_dir)
    assert mine.exists()


def _line(step):
    return {"kind": "train", "step": step, "epoch": 1.0}


def test_a_log_that_could_not_be_written_is_written_later_whole(tmp_path, monkeypatch):
    from pathlib import Path

    from cusa.train.saving.run_dir import MetricsLog

    log = MetricsLog(tmp_path)
    log.append(_line(1))
    plain = Path.open

    class Full:
        """Takes half of what is written."""

        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, text):
            self._file.write(text[:4])
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(plain(self, *a, **k)))
    for step in (2, 3):
        with pytest.raises(OSError, match="No space"):
            log.append(_line(step))
    monkeypatch.undo()
    assert read_metrics(tmp_path) == [_line(1)]
    log.append(_line(4))
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(index, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    poisoned = []
    plain = Trainer._train_on

    def step(self, batch):
        if self.progress.step == 7:
            row = int(batch.image_ids[3])
            poisoned.append(row)
            batch.images[batch.image_ids == row] = float("nan")
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "_train_on", step)
    assert run_fault("train", *_args(index, run_dir)) == Fault(StudentError)
    assert [p.stem[-1] for p in Checkpoints(run_dir).paths()] == ["5", "6"]
    monkeypatch.undo()
    run_ok("train", "--resume", "--run-dir", run_dir)


def test_a_checkpoint_of_another_student_is_named(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir))
    path = Checkpoints(run_dir).paths()[-1]
    tensors, meta = load_tensors(path)
    tensors["student.image_heads.uni.1.weight"] = torch.zeros(3, 16)
    save_tensors(path, tensors, meta)
    assert run_fault("train", "--resume", "--run-dir", run_dir) == Fault(RunError, path=run_dir)


def test_files_are_for_everyone_to_read_whom_the_umask_lets(index, tmp_path):
    run_ok("train", *_args(index, tmp_path / "run"))
    plain = (tmp_path / "run" / "config.yaml").stat().st_mode
    for path in (
        tmp_path / "run" / "best" / "student.safetensors",
        *Checkpoints(tmp_path / "run").paths(),
    ):
        assert path.stat().st_mode == plain


def test_one_run_at_a_time(index, tmp_path):
    """A second process on the same directory is refused while the first one works."""
    run_dir = tmp_path / "run"
    refused = []
    plain = Trainer._train_on

    def step(self, batch):
        if not refused:
            refused.append(ForkedCommand("train", "--resume", "--run-dir", run_dir).wait())
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_on", step)
        run_ok("train", *_args(index, run_dir))
    assert refused[0].returncode == 1
    assert "another run is working on" in refused[0].stderr


def test_patience_stops_a_run_that_gets_no_better(index, tmp_path):
    too_small = ("--set", "optim.lr=1e-12", "--set", "optim.min_lr=0")
    arguments = _args(index, tmp_path / "run", "--epochs", 50, "--patience", 2, *too_small)
    out = run_ok("train", *arguments)
    assert "best epoch 1:" in out
    assert "stopped early after epoch 3" in out
    assert "stopped early" in run_ok("train", "--resume", "--run-dir", tmp_path / "run")


def test_images_that_vanish_stop_the_run_with_a_checkpoint(tmp_path):
    manifest = make_pairs(tmp_path / "data", n=16)
    clip, store = make_tiny_clip(tmp_path / "clip"), tmp_path / "store.h5"
    precompute_pictures(manifest, clip, store)
    run_dir = tmp_path / "run"
    picture = tmp_path / "data" / "003.jpg"
    hidden = picture.with_name("gone")
    plain = Trainer._train_on

    def step(self, batch):
        if self.progress.step == 5:
            picture.rename(hidden)
        return plain(self, batch)

    args = student_options(store, clip, run_dir, epochs=3, batch_size=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_on", step)
        error = run_failure("train", *args, "--workers", 0)
    assert fault_of(error) == Fault(ImageError, picture)
    assert f"go on with: {resume_command(run_dir)}" in str(error)
    kept = int(Checkpoints(run_dir).paths()[-1].stem[-9:])
    assert 6 <= kept < 12
    hidden.rename(picture)
    assert f"after epoch {kept // 4}, step {kept % 4}" in run_ok(
        "train", "--resume", "--run-dir", run_dir
    )


def test_zero_teacher_rows_are_named(tmp_path):
    """A store that was not made by us: its rows are zero, and not marked as skipped."""
    from cusa.data.records import Dataset
    from tests.helpers import add_teacher, records, settings

    index = make_store(tmp_path / "store")
    dataset = Dataset(
        "made-up", tmp_path, {s: records(s, n) for s, n in (("train", 40), ("val", 10))}
    )
    rows = {s: np.eye(n, 40, dtype=np.float32) for s, n in (("train", 40), ("val", 10))}
    rows["train"][3] = 0
    add_teacher(index, dataset, "zeros", settings("image", 40), rows)
    teachers = ("--image-encoder", "vision", "--image-teacher", "zeros")
    assert run_fault("train", *_args(index, tmp_path / "run", *teachers)) == Fault(DataError)

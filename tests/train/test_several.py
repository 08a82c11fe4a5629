"""Several processes (gloo, torchrun): the losses of one, exact resume, and errors that reach
everyone.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cusa
from cusa.data.errors import DataError, RunError
from cusa.eval.metrics.validation import validation_scores
from cusa.train.commands import resume_command
from cusa.train.config_building import build_config, merge
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import Checkpoints, read_metrics
from cusa.train.saving.student_folder import load_saved
from cusa.train.schedule import learning_rate
from cusa.train.student_inputs import ImageFiles
from cusa.train.trainer import Trainer
from tests.helpers import (
    ADAPTER,
    Fault,
    make_pairs,
    make_store,
    make_tiny_clip,
    run_fault,
    run_ok,
    run_ranks,
)
from tests.train.pictures import precompute_pictures

ROOT = Path(cusa.__file__).parent.parent
EXACT = ("--set", "student.dropout=0", "--set", "train.log_every=1", "--epochs", 2, "--workers", 0)


def torchrun(*args, wait=True):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *launcher, "-m", "cusa.train", *map(str, args)]
    # gloo's own connection attempts go to whatever address the machine's name has
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env
    )
    if not wait:
        return begun
    out, err = begun.communicate(timeout=180)
    return subprocess.CompletedProcess(command, begun.returncode, out, err)


def _lines(run_dir, kind=None):
    lines = [m for m in read_metrics(run_dir) if kind in (None, m["kind"])]
    return [{k: v for k, v in m.items() if k != "samples_per_s"} for m in lines]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "store", sizes={"train": 40, "val": 11})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    manifest, clip = make_pairs(folder / "data", n=20), make_tiny_clip(folder / "clip")
    store = folder / "store.h5"
    precompute_pictures(manifest, clip, store)
    return "--embeddings", store, "--student", clip, "--set", "optim.lr=1e-3"


@pytest.mark.parametrize("student", ["adapter", "accumulated", "clip"])
def test_two_processes_have_the_losses_of_one_with_their_batches_joined(
    index, pictures, tmp_path, student
):
    common = pictures if student == "clip" else ("--embeddings", index, *ADAPTER)
    each = (
        ("--batch-size", 4, "--accumulate", 2) if student == "accumulated" else ("--batch-size", 8)
    )
    args = (*common, *EXACT, "--gather", *each, "--run-dir", tmp_path / "two")
    done = torchrun(*args) if student == "adapter" else run_ranks(2, "train", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1  # one of them reports
    assert "2 processes" in done.stdout
    run_ok("train", *common, *EXACT, "--batch-size", 16, "--run-dir", tmp_path / "one")
    one, two = (_lines(tmp_path / n) for n in ("one", "two"))
    assert len(one) == len(two) > 4
    for a, b in zip(one, two, strict=True):
        assert b.pop("kind") == a.pop("kind")
        assert b == pytest.approx(
            a, rel=1e-4
        )  # recalls included: each process encoded its part of the split
    first, last = (
        Checkpoints(tmp_path / "one").newest()[0][0],
        Checkpoints(tmp_path / "two").newest()[0][0],
    )
    # Attention's key biases have rounding errors for gradients, which AdamW scales up to its
    # learning rate.
    for name in (
        n for n in first if n.startswith(("student.", "loss.")) and "k_proj.bias" not in n
    ):
        torch.testing.assert_close(last[name], first[name], rtol=1e-3, atol=1e-5)


def test_without_gather_each_has_its_own_loss_and_all_share_the_mean_gradient(index, tmp_path):
    """Against both losses, written out in one process."""
    args = ("--embeddings", index, *ADAPTER, *EXACT, "--batch-size", 8)
    done = run_ranks(2, "train", *args, "--run-dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    settings = {
        "data": {"embeddings": str(index)},
        "student": {"name": "adapter", "hidden_dim": 16, "embed_dim": 8, "dropout": 0.0},
        "train": {"epochs": 2, "batch_size": 16},
    }
    config = build_config(merge(load_preset("adapter"), settings))
    trainer = Trainer(
        config,
        Processes("cpu"),
        0,
        tmp_path / "one",
        resume=False,
        validation_scores=validation_scores,
    )
    trainer.setup.step.train()
    expected = []
    for epoch in range(2):
        trainer.setup.data.order.epoch = epoch
        for number, pairs in enumerate(trainer.setup.data.order):
            halves = [
                trainer.setup.step(trainer.setup.data.pairs[part]).total
                for part in (pairs[:8], pairs[8:])
            ]
            expected.append(halves[0].item())
            assert trainer.state.descend(
                sum(halves) / 2, learning_rate(epoch * 5 + number, 5, config)
            )
    assert [m["loss"] for m in _lines(tmp_path / "two", "train")] == pytest.approx(
        expected, rel=1e-4
    )


def test_two_processes_killed_go_on_exactly_and_only_as_two(index, tmp_path):
    """SIGKILL of one of them in the middle of epoch 2; dropout included, which each draws for
    itself.
    """
    args = (
        "--embeddings",
        index,
        *ADAPTER,
        "--batch-size",
        8,
        "--set",
        "train.log_every=1",
        "--epochs",
        3,
    )
    args = (*args, "--checkpoint-steps", 3)
    assert run_ranks(2, "train", *args, "--run-dir", tmp_path / "whole").returncode == 0
    plain = Trainer._train_on

    def step(self, batch):
        if self.setup.processes.rank == 1 and self.progress.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch)

    def patch():
        Trainer._train_on = step

    done = run_ranks(2, "train", *args, "--run-dir", tmp_path / "part", patch=patch)
    assert done.returncode != 0
    assert run_fault("train", "--resume", "--run-dir", tmp_path / "part") == Fault(
        RunError, path=tmp_path / "part"
    )
    done = run_ranks(2, "train", "--resume", "--run-dir", tmp_path / "part")
    assert done.returncode == 0, done.stderr
    assert "step 1 of the next" in done.stdout
    assert _lines(tmp_path / "part") == _lines(tmp_path / "whole")
    one, two = (Checkpoints(tmp_path / n).newest()[0][0] for n in ("whole", "part"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["rng.0.cpu"], one["rng.1.cpu"])


def test_two_processes_without_validation_and_with_fewer_pairs_than_they_want(tmp_path):
    """And the command that goes on with them, as it is printed."""
    index = make_store(tmp_path / "store", sizes={"train": 5, "test": 4})
    args = (
        "--embeddings",
        index,
        *ADAPTER,
        *EXACT,
        "--batch-size",
        8,
        "--run-dir",
        tmp_path / "run",
    )
    done = run_ranks(2, "train", *args)
    assert done.returncode == 0, done.stderr
    assert "no validation" in done.stdout
    assert "each takes 5 in each process" in done.stdout
    saved = load_saved(tmp_path / "run")
    assert (saved.origin.epoch, saved.origin.step, saved.origin.processes) == (2, 2, 2)
    few = make_store(tmp_path / "few", sizes={"train": 1})
    done = run_ranks(2, "train", "--embeddings", few, *ADAPTER, "--run-dir", tmp_path / "few-run")
    assert "train on more pairs, or with fewer processes" in done.stderr
    program, *arguments = shlex.split(resume_command(tmp_path / "run", processes=2))
    assert Path(program).name == "torchrun"
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [program, "--standalone", *arguments, "--epochs", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert load_saved(tmp_path / "run").origin.epoch == 3


def test_sigterm_of_torchrun_leaves_a_checkpoint(index, tmp_path):
    args = (
        "--embeddings",
        index,
        *ADAPTER,
        "--batch-size",
        8,
        "--epochs",
        100_000,
        "--run-dir",
        tmp_path / "run",
    )
    begun = torchrun(*args, "--checkpoint-minutes", 1000, wait=False)
    best = tmp_path / "run" / "best" / "student.safetensors"
    until = time.monotonic() + 90
    while not best.exists() and time.monotonic() < until and begun.poll() is None:
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    _, err = begun.communicate(timeout=60)
    assert begun.returncode != 0
    assert "stopped by SIGTERM: step " in err, err
    kept = int(Checkpoints(tmp_path / "run").paths()[-1].stem[-9:])
    assert f"step {kept:,} is kept" in err


def test_an_image_that_one_process_cannot_read_stops_both_with_a_checkpoint(pictures, tmp_path):
    """Its message names the image; the other one does not wait for it."""
    plain_images, plain_step, trainers = ImageFiles.read, Trainer._train_on, []

    def images(self, rows):
        if len(trainers) == 3 and trainers[0].setup.processes.rank == 1:
            raise DataError("image 003.jpg does not exist")
        return plain_images(self, rows)

    def step(self, batch):
        trainers.append(self)
        return plain_step(self, batch)

    def patch():
        ImageFiles.read, Trainer._train_on = images, step

    args = (*pictures, *EXACT, "--batch-size", 4, "--run-dir", tmp_path / "run")
    began = time.monotonic()
    done = run_ranks(2, "train", *args, patch=patch)
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    assert (
        "Error: image 003.jpg does not exist (the run is kept up to step 3; go on with"
        in done.stderr
    )
    assert Checkpoints(tmp_path / "run").paths()[-1].stem == "step-000000003"

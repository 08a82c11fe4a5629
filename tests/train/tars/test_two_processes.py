"""Two processes that train on one set of tars: other pairs each, the same weights, exact resume."""

import os
import signal

import pytest
import torch

from cusa.train.trainer import Trainer
from tests.data.tars.tar_files import write_set, write_tars
from tests.helpers import ADAPTER, run_ranks
from tests.train.same_runs import assert_same_run

N_TARS = 5
N_PAIRS = 8
N_STEPS = 10  # of each process, in two epochs of batches of 4
OPTIONS = ("--batch-size", 4, "--epochs", 2, "--workers", 0, "--set", "train.log_every=1")
RANKS = (0, 1)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_set(folder / "set", write_tars(folder / "tars", N_TARS, N_PAIRS))
    return ("--embeddings", folder / "set", *ADAPTER, *OPTIONS)


def _noting(folder, killed_at=None):
    """A patch under which each rank writes down its batches and its weights after each step.

    Args:
        folder: Where; one file for each rank and step.
        killed_at: The step before which rank 1 is killed.
    """
    plain = Trainer._train_on

    def step(self, batch):
        rank, number = self.setup.processes.rank, self.progress.step
        if rank == 1 and number == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        not_finite = plain(self, batch)
        weights = self.setup.step.state_dict()
        torch.save((batch.image_ids, weights), folder / f"{rank}-{number}.pt")
        return not_finite

    def patch():
        Trainer._train_on = step

    folder.mkdir(exist_ok=True)
    return patch


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_dir = folder / "run"
    arguments = (*options, "--checkpoint-steps", 2, "--run-dir", run_dir)
    done = run_ranks(2, "train", *arguments, patch=_noting(folder / "notes"))
    assert done.returncode == 0, done.stderr
    return run_dir


def _note(run_dir, rank, step):
    return torch.load(run_dir.parent / "notes" / f"{rank}-{step}.pt")


def test_each_pair_is_trained_on_at_most_once_in_an_epoch_of_all_processes(undisturbed):
    """A picture has one caption, so that an image is a pair."""
    for epoch_steps in (range(N_STEPS // 2), range(N_STEPS // 2, N_STEPS)):
        pairs = [_note(undisturbed, rank, step)[0] for rank in RANKS for step in epoch_steps]
        of_epoch = torch.cat(pairs).tolist()
        assert sorted(of_epoch) == list(range(N_TARS * N_PAIRS))


def test_all_processes_have_the_same_weights_after_each_step(undisturbed):
    for step in range(N_STEPS):
        first, second = (_note(undisturbed, rank, step)[1] for rank in RANKS)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("killed_at", [3, 7])
def test_a_killed_process_stops_the_other_and_the_resumed_run_is_the_same(
    options, undisturbed, tmp_path, killed_at
):
    run_dir = tmp_path / "run"
    arguments = (*options, "--checkpoint-steps", 2, "--run-dir", run_dir)
    patch = _noting(tmp_path / "notes", killed_at)
    assert run_ranks(2, "train", *arguments, patch=patch).returncode != 0
    done = run_ranks(2, "train", "--resume", "--run-dir", run_dir)
    assert done.returncode == 0, done.stderr
    assert_same_run(run_dir, undisturbed)


def test_more_processes_than_tars_train_on_parts_of_them(tmp_path):
    write_set(tmp_path / "set", write_tars(tmp_path / "tars", 1, N_PAIRS))
    arguments = ("--embeddings", tmp_path / "set", *ADAPTER, *OPTIONS)
    patch = _noting(tmp_path / "notes")
    done = run_ranks(2, "train", *arguments, "--run-dir", tmp_path / "run", patch=patch)
    assert done.returncode == 0, done.stderr
    pairs = torch.cat([_note(tmp_path / "run", rank, 0)[0] for rank in RANKS])
    assert sorted(pairs.tolist()) == list(range(N_PAIRS))


def test_another_number_of_processes_is_refused_by_a_resumed_run(undisturbed):
    failure = run_ranks(1, "train", "--resume", "--run-dir", undisturbed, "--epochs", 3)
    assert failure.returncode == 1
    assert failure.stderr.count("Error: ") == 1

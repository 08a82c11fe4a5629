"""Two runs that are compared: one that was disturbed and resumed, and one that was not."""

import torch

from cusa.train.saving.run_dir import Checkpoints, read_metrics
from cusa.train.saving.student_folder import load_saved


def lines_but_speed(run_dir):
    """The lines of metrics.jsonl without what the machine decides."""
    lines = read_metrics(run_dir)
    for line in lines:
        line.pop("samples_per_s", None)
    return lines


def assert_same_run(one, two):
    """The same log, newest checkpoint and best student, bit for bit."""
    assert lines_but_speed(one) == lines_but_speed(two)
    first, second = (Checkpoints(run_dir).newest()[0] for run_dir in (one, two))
    assert first.progress == second.progress
    _assert_equal(first.tensors, second.tensors)
    _assert_equal(load_saved(one).student.state_dict(), load_saved(two).student.state_dict())


def _assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name

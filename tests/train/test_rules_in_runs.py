"""Runs with a label rule: logged, resumed exactly, and named where a run is described."""

import pytest
import torch

from cusa.data.errors import SettingError
from cusa.train.saving.run_dir import Checkpoints, read_metrics
from cusa.train.saving.student_folder import load_saved
from cusa.train.trainer import Trainer
from tests.helpers import ADAPTER, ForkedCommand, kill_at, run_failure, run_ok
from tests.train.same_runs import assert_same_run


def _args(index, run_dir, rule, *more):
    rest = ("--batch-size", 16, "--epochs", 2, "--set", "train.log_every=1")
    rule_settings = ("--set", f"loss.rule={rule}", "--loss", "contrastive")
    return ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *rest, *rule_settings, *more)


@pytest.mark.parametrize("rule", ["features", "guide"])
def test_a_run_with_a_rule_goes_on_exactly(index, tmp_path, rule):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_ok("train", *_args(index, whole, rule))
    checkpoints = ("--checkpoint-steps", 2)
    patch = kill_at(Trainer, "_train_on", 7)
    ForkedCommand("train", *_args(index, killed, rule, *checkpoints), patch=patch).wait()
    assert len(read_metrics(killed)) < len(read_metrics(whole))
    run_ok("train", "--resume", "--run-dir", killed)
    assert_same_run(whole, killed)

    steps = [line for line in read_metrics(whole) if line["kind"] == "train"]
    for line in steps:
        assert line["loss"] == pytest.approx(line["contrastive"] + line["rule"])
        assert "csa" not in line
    assert steps[-1]["rule"] < steps[0]["rule"]
    assert f"* {rule}" in (whole / "best" / "README.md").read_text()


def test_projections_are_trained_and_no_part_of_the_student(index, tmp_path):
    run_ok("train", *_args(index, tmp_path / "run", "features", "--epochs", 1))
    first = Checkpoints(tmp_path / "run").newest()[0].tensors
    weights = {name: tensor for name, tensor in first.items() if "projections" in name}
    assert len([name for name in weights if name.startswith("loss.")]) == 2
    state = load_saved(tmp_path / "run").student.state_dict()
    assert not [name for name in state if "projections" in name]
    run_ok("train", "--resume", "--run-dir", tmp_path / "run", "--epochs", 2)
    later = Checkpoints(tmp_path / "run").newest()[0].tensors
    for name, tensor in weights.items():
        assert not torch.equal(tensor, later[name])


def test_a_rule_alone_and_none_at_all(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_args(index, run_dir, "guide", "--loss", "rule", "--epochs", 1))
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    assert all(line["loss"] == line["rule"] for line in lines)
    card = (run_dir / "best" / "README.md").read_text()
    assert "| loss | 1 * guide |\n| guide.teacher | text |\n| guide.margin | 0.1 |" in card
    error = run_failure("train", *_args(index, tmp_path / "none", "cusa", "--loss", "rule"))
    assert isinstance(error, SettingError)
    assert error.name == "loss.terms"
    assert not (tmp_path / "none").exists()

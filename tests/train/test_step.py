"""The step: what is frozen, what memory it needs, the learning rate, TensorBoard files, grids of runs."""

import pytest
import torch

from cusa.train.batches import Batch
from cusa.train.config import build_config
from cusa.train.losses import TERMS, CUSALoss
from cusa.train.run_dir import read_metrics
from cusa.train.step import TrainStep, make_optimizer, prepare
from cusa.train.student import adapter_student, dual_encoder_student
from tests.helpers import make_tiny_clip

CPU = torch.device("cpu")


def _batch(n, teacher=True, pixels=False):
    torch.manual_seed(1)
    images = torch.randn(n, 3, 32, 32) if pixels else torch.randn(n, 16)
    texts = {"input_ids": torch.tensor([[0, 5, 8, 1]]).repeat(n, 1)} if pixels else torch.randn(n, 12)
    rows = (torch.randn(n, 4), torch.randn(n, 6)) if teacher else (None, None)
    return Batch(images, texts, *rows, torch.arange(n))


def _step(loss="cusa", **student):
    config = build_config({"student": {"name": "adapter", "hidden_dim": 32, **student}, "loss": {"terms": TERMS[loss]}})
    torch.manual_seed(0)
    return TrainStep(adapter_student(config.student, 16, 12), CUSALoss(config.loss), config, CPU), config


@pytest.mark.parametrize(("loss", "frozen"), [("cusa", set()), ("csa", {"image_heads.uni", "text_heads.uni"})])
def test_heads_that_no_term_uses_are_frozen(loss, frozen):
    step, config = _step(loss)
    before = {k: v.clone() for k, v in step.state_dict().items()}
    batch, state = _batch(2), torch.get_rng_state()
    step.train()
    prepare(step, batch, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert step.training
    assert all(torch.equal(v, before[k]) for k, v in step.state_dict().items())
    left = {n for n, p in step.named_parameters() if not p.requires_grad}
    assert left == {f"student.{head}.{i}.{kind}" for head in frozen for i in (0, 1) for kind in ("weight", "bias")}
    assert all(p.grad is None for p in step.parameters())
    names = make_optimizer(step, config)[1]
    assert sorted(names) == sorted(n for n, p in step.named_parameters() if p.requires_grad)


def test_parameters_that_no_embedding_depends_on_are_frozen(tmp_path):
    clip = make_tiny_clip(tmp_path / "clip")
    config = build_config({"student": {"name": str(clip)}})
    student = dual_encoder_student(config.student, str(clip), pretrained=True)[0]
    step = TrainStep(student, CUSALoss(config.loss), config, CPU)
    prepare(step, _batch(2, pixels=True), 2)
    assert [n for n, p in step.named_parameters() if not p.requires_grad] == [
        "student.image_trunk.backbone.logit_scale"
    ]


def test_the_footprint_counts_state_and_what_the_backward_pass_keeps():
    """By hand, for one linear layer after the other: the inputs of each that need a gradient are kept."""
    step, _ = _step("contrastive")
    found = prepare(step, _batch(2, teacher=False), 64)
    trained = sum(p.numel() for p in step.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in step.parameters() if not p.requires_grad)
    assert found.state == 4 * (4 * trained + frozen)
    # Per pair and modality: input of the trunk (16, 12), before and after GELU, LayerNorm's input is GELU's output,
    # its output, the head's output and its length: at least these; at most twice as much with small things.
    least = 4 * (16 + 12 + 2 * (3 * 32 + 32))
    assert least <= found.activations / 64 <= 3 * least
    twice = prepare(_step("contrastive")[0], _batch(2, teacher=False), 128)
    assert (twice.state, twice.activations) == (found.state, 2 * found.activations)


def test_more_layers_keep_more():
    small, large = (prepare(_step(hidden_dim=d)[0], _batch(4), 8) for d in (32, 320))
    assert large.activations > 4 * small.activations


def test_tensorboard_files_hold_what_the_log_does(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tests.helpers import make_store, run_ok

    index, run_dir = make_store(tmp_path / "store"), tmp_path / "run"
    args = ("--embeddings", index, "--student", "adapter", "--batch-size", 16, "--run-dir", run_dir, "--tensorboard")
    run_ok("train", *args, "--epochs", 2, "--set", "train.log_every=2")
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    lines = read_metrics(run_dir)
    for section, name in (("train", "loss"), ("train", "tau"), ("train", "lr"), ("val", "rsum")):
        logged = [(m["step"], m[name]) for m in lines if m["kind"] == section]
        found = [(e.step, e.value) for e in events.Scalars(f"{section}/{name}")]
        assert [s for s, _ in found] == [s for s, _ in logged]
        assert [v for _, v in found] == pytest.approx([v for _, v in logged], rel=1e-6)


def test_tensorboard_must_be_installed(tmp_path, monkeypatch):
    from tests.helpers import make_store, run_error

    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    index = make_store(tmp_path / "store")
    args = ("--embeddings", index, "--student", "adapter", "--batch-size", 16, "--run-dir", tmp_path / "run")
    assert "pip install 'cusa[tensorboard]'" in run_error("train", *args, "--tensorboard")
    assert not (tmp_path / "run").exists()

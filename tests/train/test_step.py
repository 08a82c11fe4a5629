"""The step: what is frozen, what memory it needs, how gradients are clipped."""

import pytest
import torch

from cusa.train.build_student import build_student
from cusa.train.config_building import build_config
from cusa.train.loader import Batch
from cusa.train.loss.config import TERMS
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.step import TrainStep, make_optimizer, prepare_step
from cusa.train.training_state import TrainingState
from tests.helpers import make_tiny_clip

CPU = torch.device("cpu")
DIMS = {"image": 16, "text": 12}


def _batch(n, teacher=True, pixels=False):
    torch.manual_seed(1)
    images = torch.randn(n, 3, 32, 32) if pixels else torch.randn(n, 16)
    texts = (
        {"input_ids": torch.tensor([[0, 5, 8, 1]]).repeat(n, 1)} if pixels else torch.randn(n, 12)
    )
    rows = (torch.randn(n, 4), torch.randn(n, 6)) if teacher else (None, None)
    return Batch(images, texts, *rows, torch.arange(n))


def _step(loss="cusa", precision="fp32", **student):
    student = {"name": "adapter", "hidden_dim": 32, **student}
    config = build_config(
        {"student": student, "loss": {"terms": TERMS[loss]}, "train": {"precision": precision}}
    )
    torch.manual_seed(0)
    student = build_student(config.student, DIMS).student
    return TrainStep(student, CUSALoss(config.loss), config, CPU), config


@pytest.mark.parametrize(
    ("loss", "frozen"), [("cusa", set()), ("csa", {"image_heads.uni", "text_heads.uni"})]
)
def test_heads_that_no_term_uses_are_frozen(loss, frozen):
    step, config = _step(loss)
    before = {k: v.clone() for k, v in step.state_dict().items()}
    batch, state = _batch(2), torch.get_rng_state()
    step.train()
    prepare_step(step, batch, batch, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert step.training
    assert all(torch.equal(v, before[k]) for k, v in step.state_dict().items())
    left = {n for n, p in step.named_parameters() if not p.requires_grad}
    assert left == {
        f"student.{head}.{i}.{kind}"
        for head in frozen
        for i in (0, 1)
        for kind in ("weight", "bias")
    }
    assert all(p.grad is None for p in step.parameters())
    names = make_optimizer(step, config)[1]
    assert sorted(names) == sorted(n for n, p in step.named_parameters() if p.requires_grad)


def test_parameters_that_no_embedding_depends_on_are_frozen(tmp_path):
    clip = make_tiny_clip(tmp_path / "clip")
    config = build_config({"student": {"name": str(clip)}})
    student = build_student(config.student).student
    step = TrainStep(student, CUSALoss(config.loss), config, CPU)
    prepare_step(step, _batch(2, pixels=True), _batch(4, pixels=True), 2)
    assert [n for n, p in step.named_parameters() if not p.requires_grad] == [
        "student.image_trunk.backbone.logit_scale"
    ]


def _footprint(step, pairs, teacher=False):
    return prepare_step(step, _batch(2, teacher), _batch(4, teacher), pairs)


def test_the_footprint_counts_state_and_what_the_backward_pass_keeps():
    """By hand: what must be kept of each pair, and no more than twice that with what is small."""
    step, _ = _step("contrastive", hidden_dim=64, embed_dim=64)
    found = _footprint(step, 64)
    trained = sum(p.numel() for p in step.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in step.parameters() if not p.requires_grad)
    assert found.state == 4 * (4 * trained + frozen)
    # Per pair: the trunks' inputs (16, 12); in each modality GELU's input, LayerNorm's input, its
    # output twice (a head each) and both heads' outputs, of which one goes into no loss.
    per_pair = 4 * (16 + 12 + 2 * (64 + 64 + 64 + 64))
    assert per_pair <= found.activations / 64 <= 2 * per_pair


def test_copies_of_weights_under_autocast_do_not_count_for_every_pair():
    """What half precision keeps of 4,096 pairs is less than single precision does."""
    sizes = {}
    for precision in ("fp32", "bf16"):
        step, _ = _step(hidden_dim=512, precision=precision)
        sizes[precision] = _footprint(step, 4096, teacher=True).activations
    assert 0.4 < sizes["bf16"] / sizes["fp32"] < 1


@pytest.mark.parametrize(("grad_clip", "norm"), [(0, 37.5), (1, 1.0), (100, 37.5)])
def test_gradients_are_clipped_by_their_norm_or_not_at_all(grad_clip, norm):
    """Of a loss that is 37.5 times a temperature, whose gradient has the norm 37.5."""
    config = build_config(
        {"student": {"name": "adapter", "hidden_dim": 4}, "optim": {"grad_clip": grad_clip}}
    )
    student = build_student(config.student, DIMS).student
    step = TrainStep(student, CUSALoss(config.loss), config, CPU)
    assert TrainingState(step, config, CPU).descend(37.5 * step.loss.tau, learning_rate=1e-3)
    assert step.loss.tau.grad.item() == pytest.approx(norm, rel=1e-5)

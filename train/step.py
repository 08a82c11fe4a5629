"""One optimizer step: encoders and loss in one module, the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cusa.train.config import Config
from cusa.train.gradient_cache import encode_in_micro_batches
from cusa.train.loader import Batch, Inputs
from cusa.train.loss.cusa_loss import CUSALoss, LossTerms
from cusa.train.student import Features, Student

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainStep(nn.Module):
    """From a batch to its loss; all that is trained is in here, so that DDP wraps one module.

    Args:
        student: The student.
        loss: The loss.
        config: The run's settings.
        device: Where both are.
    """

    def __init__(
        self, student: Student, loss: CUSALoss, config: Config, device: torch.device
    ) -> None:
        super().__init__()
        self.student, self.loss, self._device = student, loss, device
        self._reduced = AUTOCAST.get(config.train.precision)
        self.at_a_time = config.train.pairs_at_a_time

    def forward(self, batch: Batch) -> LossTerms:
        """The loss of a batch, whose student inputs may lie elsewhere if they are encoded a few at a time.

        Raises:
            ValueError: If the batch does not fit the loss; see :class:`CUSALoss`.
        """
        image, text = self.encode(batch)
        return self.loss(
            image.cross,
            text.cross,
            image.uni,
            text.uni,
            batch.teacher_image,
            batch.teacher_text,
            batch.image_ids,
        )

    def encode(self, batch: Batch) -> tuple[Features, Features]:
        """Embeddings of the images and of the captions."""
        reduced = self._reduced
        with torch.autocast(self._device.type, reduced) if reduced else contextlib.nullcontext():
            return (
                self._encode(self.student.encode_image, batch.images),
                self._encode(self.student.encode_text, batch.texts),
            )

    def _encode(self, encode: Callable[[Any], Features], inputs: Inputs) -> Features:
        if self.at_a_time is None:
            return encode(inputs)
        return encode_in_micro_batches(encode, inputs, self.at_a_time, self._device)


@dataclass(frozen=True)
class Footprint:
    """What training needs of a device's memory, in bytes.

    Attributes:
        state: Weights, gradients and AdamW's two moments.
        activations: What the backward pass keeps of the pairs that are encoded at a time.
    """

    state: int
    activations: int


def prepare(step: TrainStep, two: Batch, four: Batch, pairs_at_a_time: int) -> Footprint:
    """Run small batches forward and backward: freeze what gets no gradient, and see what is kept in memory.

    A backbone has parameters that no embedding depends on (CLIP's logit scale), and heads may be in no term of the
    loss; DDP would wait for their gradients.

    Args:
        step: The module; its random states, gradients and mode are as before.
        two: Two pairs, on its device.
        four: Four.
        pairs_at_a_time: Pairs whose activations will be in memory together.
    """
    before, at_a_time, training = step.loss.gather, step.at_a_time, step.training
    step.loss.gather, step.at_a_time = False, None  # each process by itself, all of it at once
    step.eval()  # BatchNorm's statistics are not to see it
    with torch.random.fork_rng([two.image_ids.device] if two.image_ids.is_cuda else []):
        # Their difference, since some is kept once for any number of pairs: under autocast, copies of the weights.
        kept = [_kept(step, batch) for batch in (two, four)]
    step.loss.gather, step.at_a_time = before, at_a_time
    step.train(training)
    state = 0
    for parameter in step.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
        state += (
            parameter.numel() * parameter.element_size() * (4 if parameter.requires_grad else 1)
        )
    return Footprint(state, kept[0] + (kept[1] - kept[0]) * (pairs_at_a_time - 2) // 2)


def _kept(step: TrainStep, batch: Batch) -> int:
    """Bytes that the backward pass keeps, but for the parameters; gradients are left behind."""
    found: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in step.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        total = step(batch).total
    total.backward()
    return sum(found.values())


def make_optimizer(step: TrainStep, config: Config) -> tuple[torch.optim.AdamW, list[str]]:
    """AdamW over all that is trained, with weight decay on matrices alone.

    Returns:
        The optimizer, and the names of its parameters in its own order.
    """
    named = [(n, p) for n, p in step.named_parameters() if p.requires_grad]
    decayed = [(n, p) for n, p in named if p.ndim >= 2]
    others = [(n, p) for n, p in named if p.ndim < 2]
    o = config.optim
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": o.weight_decay},
        {"params": [p for _, p in others], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)
    return optimizer, [n for n, _ in decayed + others]

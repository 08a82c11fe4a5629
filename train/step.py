"""One optimizer step: encoders and loss in one module, the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
        self,
        student: Student,
        loss: CUSALoss,
        config: Config,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.student = student
        self.loss = loss
        self.at_a_time = config.train.pairs_at_a_time
        self._device = device
        self._autocast_dtype = AUTOCAST.get(config.train.precision)

    def forward(self, batch: Batch) -> LossTerms:
        """Return the loss of a batch.

        The student's inputs may lie on another device if they are encoded a few at a time.

        Raises:
            EmbeddingsError: If the batch does not fit the loss; see :class:`CUSALoss`.
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
        """Return the embeddings of the images and of the captions."""
        dtype = self._autocast_dtype
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            # Encoders alone run in half precision; the loss computes in float32 or wider.
            image = self._encode(self.student.encode_image, batch.images)
            text = self._encode(self.student.encode_text, batch.texts)
            return image, text

    def _encode(
        self,
        encode: Callable[[Any], Features],
        inputs: Inputs,
    ) -> Features:
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


def prepare_step(
    step: TrainStep,
    two_pairs: Batch,
    four_pairs: Batch,
    pairs_at_a_time: int,
) -> Footprint:
    """Run small batches forward and backward: freeze what gets no gradient, and measure memory.

    A backbone has parameters that no embedding depends on (CLIP's logit scale), and heads may be in
    no term of the loss; DDP would wait for their gradients.

    Args:
        step: The module; its random states, gradients and mode are as before.
        two_pairs: A batch on its device.
        four_pairs: A batch of twice as many.
        pairs_at_a_time: Pairs whose activations will be in memory together.
    """
    gather = step.loss.gather
    at_a_time = step.at_a_time
    is_training = step.training
    # Each process by itself, all of the batch at once; BatchNorm's statistics are not to see it.
    step.loss.gather = False
    step.at_a_time = None
    step.eval()
    device = two_pairs.image_ids.device
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices):
        bytes_of_two = _activation_bytes(step, two_pairs)
        bytes_of_four = _activation_bytes(step, four_pairs)
    step.loss.gather = gather
    step.at_a_time = at_a_time
    step.train(is_training)

    # The difference, since some is kept once for any number of pairs: under autocast, copies of the
    # weights.
    bytes_of_more = (bytes_of_four - bytes_of_two) * (pairs_at_a_time - 2) // 2
    return Footprint(_freeze_unused(step), bytes_of_two + bytes_of_more)


def _freeze_unused(step: TrainStep) -> int:
    """Freeze parameters without a gradient; return the bytes that training holds for all."""
    n_bytes = 0
    for parameter in step.parameters():
        is_trained = parameter.grad is not None
        parameter.requires_grad_(is_trained)
        parameter.grad = None
        copies = 4 if is_trained else 1  # the gradient and AdamW's two moments beside it
        n_bytes += copies * parameter.numel() * parameter.element_size()
    return n_bytes


def _activation_bytes(step: TrainStep, batch: Batch) -> int:
    """Return the bytes that the backward pass keeps, without the parameters.

    Gradients stay at the parameters.
    """
    bytes_by_address = {}
    of_parameters = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_parameters:
            bytes_by_address[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        total = step(batch).total
    total.backward()
    return sum(bytes_by_address.values())


def make_optimizer(
    step: TrainStep,
    config: Config,
) -> tuple[torch.optim.AdamW, list[str]]:
    """Make AdamW over all that is trained, with weight decay on matrices alone.

    Returns:
        The optimizer, and the names of its parameters in its own order.
    """
    # Biases, norms and temperatures are vectors and scalars: decay would pull them to zero.
    decayed: dict[str, nn.Parameter] = {}
    not_decayed: dict[str, nn.Parameter] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            group = decayed if parameter.ndim >= 2 else not_decayed
            group[name] = parameter
    optim = config.optim
    groups = [
        {"params": [*decayed.values()], "weight_decay": optim.weight_decay},
        {"params": [*not_decayed.values()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    return optimizer, [*decayed, *not_decayed]

"""The parts of an optimizer step: encoders and loss in one module, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cusa.train.config import Config
from cusa.train.gradient_cache import encode_in_micro_batches
from cusa.train.loader import Batch
from cusa.train.loss.cusa_loss import CUSALoss, LossTerms
from cusa.train.student import Features, Student
from cusa.train.student_inputs import Inputs

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainStep(nn.Module):
    """Computes the loss of a batch; holds everything that is trained, so that DDP wraps one module.

    Args:
        student: The student.
        loss: The loss.
        config: The run's settings.
        device: The device of both.

    Attributes:
        at_a_time: Pairs that are encoded at a time; ``None``: the whole batch.
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

        The student's inputs may be on another device if they are encoded a few at a time.

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
            cross_teachers=batch.cross_teachers,
        )

    def encode(self, batch: Batch) -> tuple[Features, Features]:
        """Return the features of the images and of the captions, ``[B, embed_dim]`` per head."""
        dtype = self._autocast_dtype
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            # Only the encoders run in half precision; the loss computes in float32 or wider.
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
        activations: What the backward pass keeps for the pairs that are encoded at a time.
    """

    state: int
    activations: int


def prepare_step(
    step: TrainStep,
    two_pairs: Batch,
    four_pairs: Batch,
    pairs_at_a_time: int,
) -> Footprint:
    """Freeze parameters that get no gradient, and measure memory, by running two small batches.

    Some parameters of a backbone influence no embedding (CLIP's logit scale), and some heads may be
    in no term of the loss; DDP would wait for their gradients.

    Args:
        step: The module; its mode and the random states are left as they were, without gradients.
        two_pairs: A batch of two pairs on the module's device.
        four_pairs: The same pairs twice.
        pairs_at_a_time: Pairs whose activations will be in memory at a time.
    """
    gather = step.loss.gather
    at_a_time = step.at_a_time
    is_training = step.training
    # Each process by itself, and the whole batch at once. In eval mode, BatchNorm's statistics do
    # not change.
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

    # Scale the difference: some memory, such as autocast's copies of the weights, is needed once
    # for any number of pairs.
    bytes_of_more = (bytes_of_four - bytes_of_two) * (pairs_at_a_time - 2) // 2
    state_bytes = _freeze_unused(step)
    return Footprint(state_bytes, bytes_of_two + bytes_of_more)


def _freeze_unused(step: TrainStep) -> int:
    """Freeze parameters without a gradient; return the bytes of the state of all parameters."""
    n_bytes = 0
    for parameter in step.parameters():
        is_trained = parameter.grad is not None
        parameter.requires_grad_(is_trained)
        parameter.grad = None
        n_copies = 1
        if is_trained:
            n_copies = 4  # itself, its gradient and AdamW's two moments
        n_bytes += n_copies * parameter.numel() * parameter.element_size()
    return n_bytes


def _activation_bytes(step: TrainStep, batch: Batch) -> int:
    """Return the bytes that are kept for the backward pass, without the parameters.

    The parameters keep the gradients.
    """
    bytes_by_address = {}
    parameter_addresses = set()
    for parameter in step.parameters():
        storage = parameter.untyped_storage()
        parameter_addresses.add(storage.data_ptr())

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in parameter_addresses:
            bytes_by_address[address] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        total = step(batch).total
    total.backward()
    return sum(bytes_by_address.values())


def make_optimizer(
    step: TrainStep,
    config: Config,
) -> tuple[torch.optim.AdamW, list[str]]:
    """Make AdamW for everything that is trained, with weight decay on matrices only.

    Args:
        step: The module.
        config: The run's settings.

    Returns:
        The optimizer, and the names of its parameters in its own order.
    """
    # Decay would pull biases, norms and temperatures, which are vectors and scalars, to zero.
    decayed: dict[str, nn.Parameter] = {}
    not_decayed: dict[str, nn.Parameter] = {}
    for name, parameter in step.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim >= 2:
            decayed[name] = parameter
        else:
            not_decayed[name] = parameter
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

"""Gradient caching: the loss of a large batch, with the encoders run on a few pairs at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from cusa.train.loader import Inputs, each_tensor

Outputs = TypeVar("Outputs", bound=torch.Tensor | tuple[torch.Tensor, ...])


def encode_in_micro_batches(
    encode: Callable[[Any], Outputs],
    inputs: Inputs,
    size: int,
    device: torch.device | str | None = None,
) -> Outputs:
    """What ``encode(inputs)`` returns, with the activations of ``size`` rows in memory at a time.

    Each micro-batch is encoded twice: now, keeping its embeddings alone, and in the backward pass, with the random
    states of the first time (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup"; here each micro-batch is a checkpoint of ``torch.utils.checkpoint``). Gradients are those of the whole
    batch, but for two things: dropout draws other masks than one call would, and BatchNorm in training mode sees each
    micro-batch by itself, twice.

    Args:
        encode: The encoder: inputs to embeddings, a tensor or a tuple of tensors, a row for each row of the inputs.
        inputs: A tensor, or a mapping of tensors, with equally many rows.
        size: Rows of a micro-batch.
        device: Where each micro-batch is moved when its turn comes, so that the batch itself may lie elsewhere;
            ``None``: inputs are where the encoder wants them. (It must not move them itself: the random states that
            are replayed are those of this device and the CPU.)

    Raises:
        ValueError: If ``size`` is less than one, or inputs or embeddings do not have as many rows as the others.
    """
    if size < 1:
        raise ValueError(f"a micro-batch needs at least one row, got size {size}")
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs.values())
    if len({len(x) for x in tensors}) != 1 or len(tensors[0]) == 0:
        raise ValueError(
            f"inputs must have equally many rows and at least one, got {[len(x) for x in tensors]}"
        )

    def run(part: Inputs, marker: torch.Tensor) -> Outputs:
        return encode(each_tensor(part, lambda x: x.to(marker.device, non_blocking=True)))

    # Of those devices that its arguments are on, checkpoint keeps the random state.
    marker = torch.empty(0, device=device or tensors[0].device)
    parts: list[Any] = []
    for start in range(0, len(tensors[0]), size):
        part = each_tensor(inputs, operator.itemgetter(slice(start, start + size)))
        parts.append(checkpoint(run, part, marker, use_reentrant=False))
    if isinstance(parts[0], torch.Tensor):
        joined: Any = torch.cat(parts)
    else:
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        joined = parts[0]._make(columns) if hasattr(parts[0], "_make") else tuple(columns)
    if wrong := [
        len(x)
        for x in ([joined] if isinstance(joined, torch.Tensor) else joined)
        if len(x) != len(tensors[0])
    ]:
        raise ValueError(
            f"encode must return a row for each of its {len(tensors[0])} rows in all, got {wrong[0]}"
        )
    return joined

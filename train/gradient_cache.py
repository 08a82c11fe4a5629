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

    Each micro-batch is encoded twice: now, keeping its embeddings alone, and in the backward pass,
    with the random states of the first time (Gao et al. 2021, "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup"; here each micro-batch is a checkpoint of
    ``torch.utils.checkpoint``). Gradients are those of the whole batch, but for two things: dropout
    draws other masks than one call would, and BatchNorm in training mode sees each micro-batch by
    itself, twice.

    Args:
        encode: The encoder: inputs to embeddings, a tensor or a tuple of tensors, a row for each
            row of the inputs.
        inputs: A tensor, or a mapping of tensors, with equally many rows.
        size: Rows of a micro-batch.
        device: Where each micro-batch is moved when its turn comes, so that the batch itself may
            lie elsewhere; ``None``: inputs are where the encoder wants them. (It must not move them
            itself: the random states that are replayed are those of this device and the CPU.)

    Raises:
        ValueError: If ``size`` is less than one, or inputs or embeddings do not have as many rows
            as the others.
    """
    if size < 1:
        raise ValueError(f"a micro-batch needs at least one row, got size {size}")
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs.values())
    row_counts = [len(tensor) for tensor in tensors]
    n_rows = row_counts[0]
    if len(set(row_counts)) != 1 or n_rows == 0:
        raise ValueError(f"inputs must have equally many rows and at least one, got {row_counts}")

    def run(micro_batch: Inputs, marker: torch.Tensor) -> Outputs:
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(marker.device, non_blocking=True)

        return encode(each_tensor(micro_batch, moved))

    # Of those devices that its arguments are on, checkpoint keeps the random state.
    marker = torch.empty(0, device=device or tensors[0].device)
    outputs = []
    for start in range(0, n_rows, size):
        micro_batch = each_tensor(inputs, operator.itemgetter(slice(start, start + size)))
        outputs.append(checkpoint(run, micro_batch, marker, use_reentrant=False))

    if isinstance(outputs[0], torch.Tensor):
        embeddings: Any = torch.cat(outputs)
        _require_rows(embeddings, n_rows)
        return embeddings
    columns = [torch.cat(column) for column in zip(*outputs, strict=True)]
    for column in columns:
        _require_rows(column, n_rows)
    make: Any = getattr(outputs[0], "_make", tuple)  # of a named tuple, its own
    return make(columns)


def _require_rows(embeddings: torch.Tensor, n_rows: int) -> None:
    if len(embeddings) != n_rows:
        raise ValueError(
            f"encode must return a row for each of its {n_rows} rows in all, got {len(embeddings)}"
        )

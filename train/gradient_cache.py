"""Gradient caching: the loss of a large batch, with the encoders run on a few pairs at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from cusa.train.loader import each_tensor, to_device
from cusa.train.student_inputs import Inputs

Outputs = TypeVar("Outputs", bound=torch.Tensor | tuple[torch.Tensor, ...])


def encode_in_micro_batches(
    encode: Callable[[Any], Outputs],
    inputs: Inputs,
    size: int,
    device: torch.device | str | None = None,
) -> Outputs:
    """Return ``encode(inputs)``, with the activations of only ``size`` rows in memory at a time.

    Each micro-batch is encoded twice: now, keeping only its embeddings, and again in the backward
    pass, with the same random states (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch
    Size under Memory Limited Setup"; here each micro-batch is a checkpoint of
    ``torch.utils.checkpoint``). The gradients are those of the whole batch, with two exceptions:
    dropout draws other masks than one call would, and BatchNorm in training mode sees each
    micro-batch by itself, twice.

    Args:
        encode: Maps inputs to embeddings: a tensor or a tuple of tensors, with one row for each row
            of the inputs.
        inputs: A tensor, or a mapping of tensors that have equally many rows.
        size: Rows of a micro-batch.
        device: Where each micro-batch is moved when its turn comes, so that the whole batch may
            stay on another device; ``None``: the inputs are where the encoder needs them. (The
            encoder must not move them itself: only the random states of this device and of the CPU
            are replayed.)

    Returns:
        What ``encode`` returns, for all rows.

    Raises:
        ValueError: If ``size`` is less than one, the inputs have no rows or differ in their number
            of rows, or the embeddings have another number of rows than the inputs.
    """
    if size < 1:
        raise ValueError(f"a micro-batch needs at least one row, got size {size}")
    if isinstance(inputs, torch.Tensor):
        tensors = [inputs]
    else:
        tensors = list(inputs.values())
    n_rows = _common_rows(tensors)

    def encode_on_device(micro_batch: Inputs, marker: torch.Tensor) -> Outputs:
        return encode(to_device(micro_batch, marker.device))

    if device is None:
        device = tensors[0].device
    # checkpoint keeps the random states of the devices that its arguments are on: this empty tensor
    # names the device.
    marker = torch.empty(0, device=device)
    outputs: list[Outputs] = []
    for start in range(0, n_rows, size):
        rows_of_micro_batch = slice(start, start + size)
        micro_batch = each_tensor(inputs, operator.itemgetter(rows_of_micro_batch))
        embeddings = checkpoint(encode_on_device, micro_batch, marker, use_reentrant=False)
        outputs.append(embeddings)
    return _joined(outputs, n_rows)


def _common_rows(tensors: Sequence[torch.Tensor]) -> int:
    """Return the number of rows that all inputs have."""
    row_counts = [len(tensor) for tensor in tensors]
    are_equal = len(set(row_counts)) == 1
    if not are_equal or row_counts[0] == 0:
        raise ValueError(f"inputs must have equally many rows and at least one, got {row_counts}")
    return row_counts[0]


def _joined(outputs: Sequence[Any], n_rows: int) -> Any:
    """Concatenate the outputs of micro-batches: a tensor, or a tuple of the same class."""
    first_output = outputs[0]
    if isinstance(first_output, torch.Tensor):
        embeddings = torch.cat(list(outputs))
        _require_rows(embeddings, n_rows)
        return embeddings
    columns = []
    for column_outputs in zip(*outputs, strict=True):
        column = torch.cat(column_outputs)
        _require_rows(column, n_rows)
        columns.append(column)
    make_tuple = getattr(first_output, "_make", tuple)  # keeps a named tuple's class
    return make_tuple(columns)


def _require_rows(embeddings: torch.Tensor, n_rows: int) -> None:
    if len(embeddings) != n_rows:
        raise ValueError(
            f"encode must return a row for each of its {n_rows} rows in all, got {len(embeddings)}"
        )

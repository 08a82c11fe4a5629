"""A batch that is spread over the ranks of ``torch.distributed``.

Every rank gets the features of all ranks, and gradients return to the rank that owns the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.teacher_inputs import MOST_TEACHER_ROWS

_MOST_TENSORS = 4 + MOST_TEACHER_ROWS  # features of two heads and two modalities, teacher rows


class GatherGroup:
    """The ranks that share a batch.

    Args:
        group: Their process group; ``None``: the default one.

    Attributes:
        size: Number of ranks.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)
        self._batch_sizes: list[int] = []

    @staticmethod
    def if_several(group: dist.ProcessGroup | None) -> GatherGroup | None:
        """Return the ranks of a group, or ``None`` if this process is alone.

        Raises:
            SettingError: If this process is not in the group.
        """
        if not dist.is_available() or not dist.is_initialized():
            return None
        if dist.get_world_size(group) == 1:
            return None
        if dist.get_rank(group) < 0:
            raise SettingError("gather: this process is not in the group", name="group")
        return GatherGroup(group)

    @property
    def rows(self) -> slice:
        """Return the positions of this rank's rows in the gathered batch."""
        start = sum(self._batch_sizes[: self._rank])
        return slice(start, start + self._batch_sizes[self._rank])

    def agree(
        self,
        tensors: Sequence[Tensor],
        image_ids: Tensor | None,
        fault: EmbeddingsError | None,
    ) -> None:
        """Exchange the batch sizes, and fail on every rank if one of them cannot go on.

        Args:
            tensors: What this rank will gather.
            image_ids: This rank's image ids.
            fault: What is wrong with this rank's inputs, if anything is.

        Raises:
            EmbeddingsError: On every rank, if any rank has a fault or other inputs than the first;
                on the other ranks, ``location`` is the rank at fault.
        """
        properties = [] if fault else _properties_of_all(tensors)
        padding = [0] * (3 * _MOST_TENSORS - len(properties))
        # all_gather needs equal shapes, so pad the headers to one length.
        header = [
            len(tensors[0]),
            fault is not None,
            image_ids is not None,
            *properties,
            *padding,
        ]
        own_header = torch.tensor(header, device=tensors[0].device)
        headers = list(own_header.new_empty(self.size, len(header)))
        dist.all_gather(headers, own_header, group=self._group)
        if fault is not None:  # not raised earlier: the other ranks were waiting in all_gather
            raise fault

        table: list[list[int]] = torch.stack(headers).tolist()
        _require_same_inputs(table)
        self._batch_sizes = [row[0] for row in table]

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, ``[N, d]``, in the order of ranks.

        The gradient of a rank's own rows is the sum of their gradients in all ranks' losses, times
        the number of ranks.
        """
        return _Gather.apply(self, rows)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, without a gradient."""
        # all_reduce writes into its argument, so pass a copy.
        total = values.detach().clone()
        dist.all_reduce(total, group=self._group)
        return total

    def sum_gradients(self, parameters: list[Tensor]) -> Sequence[Tensor]:
        """Return parameters of one shape unchanged; their gradients are summed over all ranks."""
        return _SumGradients.apply(self, *parameters) if parameters else parameters

    def all_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, ``[N, ...]``, without a gradient."""
        longest = max(self._batch_sizes)
        received = list(rows.new_empty(self.size, longest, *rows.shape[1:]))
        dist.all_gather(received, self._padded(rows), group=self._group)
        for rank, batch_size in enumerate(self._batch_sizes):
            received[rank] = received[rank][:batch_size]
        return torch.cat(received)

    def sum_of_rows(self, gathered: Tensor) -> Tensor:
        """Sum ``[N, d]`` over all ranks, and return this rank's rows of it."""
        to_ranks = [self._padded(rows) for rows in gathered.split(self._batch_sizes)]
        own_rows = torch.empty_like(to_ranks[self._rank])
        dist.reduce_scatter(own_rows, to_ranks, group=self._group)
        return own_rows[: self._batch_sizes[self._rank]]

    def _padded(self, rows: Tensor) -> Tensor:
        """Append rows of zeros: collectives need the same shape from every rank."""
        n_missing = max(self._batch_sizes) - len(rows)
        if n_missing == 0:
            return rows.contiguous()
        padding = rows.new_zeros(n_missing, *rows.shape[1:])
        return torch.cat([rows, padding])


def _require_same_inputs(table: list[list[int]]) -> None:
    """Refuse headers that report a fault, or other inputs than the first rank's."""
    first_inputs = table[0][2:]
    for rank, (_, has_fault, *inputs) in enumerate(table):
        if has_fault:
            raise EmbeddingsError(
                f"rank {rank} cannot go on: its batch is faulty; its own error says why",
                location=f"rank {rank}",
            )
        if inputs != first_inputs:
            raise EmbeddingsError(
                "the ranks have different inputs (whether there are image ids; then, for each "
                "matrix, its columns, whether it is float64 and whether it needs a gradient): "
                f"{first_inputs} on rank 0, {inputs} on rank {rank}; pass the same kinds of inputs "
                "on every rank",
                location=f"rank {rank}",
            )


def _properties_of_all(tensors: Sequence[Tensor]) -> list[int]:
    """Return three numbers per tensor: its columns, whether it is float64, and needs a gradient."""
    properties = []
    for tensor in tensors:
        needs_gradient = tensor.requires_grad and torch.is_grad_enabled()
        properties += [tensor.shape[-1], int(tensor.dtype == torch.float64), int(needs_gradient)]
    return properties


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: GatherGroup,
        rows: Tensor,
    ) -> Tensor:
        ctx.group = group
        return group.all_rows(rows)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        gradient: Tensor,
    ) -> tuple[None, Tensor]:
        group: GatherGroup = ctx.group
        # DDP will average over the ranks what must be their sum.
        return None, group.sum_of_rows(gradient) * group.size


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: GatherGroup,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(parameter.clone() for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        totals = ctx.group.sum(torch.stack(gradients))
        return None, *totals.unbind()

"""A batch that is spread over the ranks of ``torch.distributed``.

Every rank sees the features of all, and gradients go back to the rank whose rows they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from cusa.data.errors import EmbeddingsError, SettingError

_MOST_TENSORS = 6  # features of two heads and teacher rows, of two modalities


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
        """Return the ranks of a group, or ``None`` where this process is alone.

        Raises:
            SettingError: If this process is not one of the group.
        """
        if not dist.is_available() or not dist.is_initialized():
            return None
        if dist.get_world_size(group) == 1:
            return None
        if dist.get_rank(group) < 0:
            raise SettingError("gather: this process is not one of the group", name="group")
        return GatherGroup(group)

    @property
    def rows(self) -> slice:
        """This rank's rows of the gathered batch."""
        start = sum(self._batch_sizes[: self._rank])
        return slice(start, start + self._batch_sizes[self._rank])

    def agree(
        self,
        tensors: Sequence[Tensor],
        image_ids: Tensor | None,
        fault: EmbeddingsError | None,
    ) -> None:
        """Exchange the batch sizes, and make sure that no rank waits for another that has stopped.

        Args:
            tensors: What this rank will gather.
            image_ids: Its image ids.
            fault: What is wrong with them, if anything is.

        Raises:
            EmbeddingsError: On every rank, if one has a fault, or if they do not bring the same;
                ``location`` names another rank that is at fault.
        """
        properties = [] if fault else _properties_of_all(tensors)
        padding = [0] * (3 * _MOST_TENSORS - len(properties))
        # All headers have one length, whatever a rank brings: all_gather wants equal shapes.
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
        if fault is not None:  # raised only now: the other ranks waited in all_gather
            raise fault

        table: list[list[int]] = torch.stack(headers).tolist()
        _require_same_inputs(table)
        self._batch_sizes = [row[0] for row in table]

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, ``[N, d]``, rank after rank.

        The gradient of a rank's own rows is the sum of what all ranks' losses give them, times the
        number of ranks.
        """
        return _Gather.apply(self, rows)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, without a gradient."""
        # A copy: all_reduce writes into it.
        total = values.detach().clone()
        dist.all_reduce(total, group=self._group)
        return total

    def sum_gradients(self, scalars: list[Tensor]) -> Sequence[Tensor]:
        """Return the scalars, whose gradients will be the sum of all ranks'."""
        return _SumGradients.apply(self, *scalars) if scalars else scalars

    def all_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, without a gradient."""
        longest = max(self._batch_sizes)
        received = list(rows.new_empty(self.size, longest, *rows.shape[1:]))
        dist.all_gather(received, self._padded(rows), group=self._group)
        for rank, batch_size in enumerate(self._batch_sizes):
            received[rank] = received[rank][:batch_size]
        return torch.cat(received)

    def sum_of_rows(self, gathered: Tensor) -> Tensor:
        """Return this rank's rows of the sum over ranks of ``[N, d]``."""
        to_ranks = [self._padded(rows) for rows in gathered.split(self._batch_sizes)]
        own_rows = torch.empty_like(to_ranks[self._rank])
        dist.reduce_scatter(own_rows, to_ranks, group=self._group)
        return own_rows[: self._batch_sizes[self._rank]]

    def _padded(self, rows: Tensor) -> Tensor:
        """Append rows of zeros: collectives want the same shape from every rank."""
        n_missing = max(self._batch_sizes) - len(rows)
        if n_missing == 0:
            return rows.contiguous()
        padding = rows.new_zeros(n_missing, *rows.shape[1:])
        return torch.cat([rows, padding])


def _require_same_inputs(table: list[list[int]]) -> None:
    """Refuse ranks whose headers show a fault, or other inputs than the first rank's."""
    first_inputs = table[0][2:]
    for rank, (_, has_fault, *inputs) in enumerate(table):
        if has_fault:
            raise EmbeddingsError(
                f"rank {rank} cannot go on: its batch is faulty; its own error says why",
                location=f"rank {rank}",
            )
        if inputs != first_inputs:
            raise EmbeddingsError(
                "the ranks do not bring the same; image ids or none, and of each matrix its "
                "columns, whether it is float64 and whether it wants a gradient: "
                f"{first_inputs} on rank 0, {inputs} on rank {rank}",
                location=f"rank {rank}",
            )


def _properties_of_all(tensors: Sequence[Tensor]) -> list[int]:
    """Return columns, whether float64, and whether a gradient is wanted, of each tensor."""
    properties = []
    for tensor in tensors:
        wants_gradient = tensor.requires_grad and torch.is_grad_enabled()
        properties += [tensor.shape[-1], int(tensor.dtype == torch.float64), int(wants_gradient)]
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
        # DDP averages over the ranks what is to be their sum.
        return None, group.sum_of_rows(gradient) * group.size


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: GatherGroup,
        *scalars: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(scalar.clone() for scalar in scalars)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        totals = ctx.group.sum(torch.stack(gradients))
        return None, *totals.unbind()

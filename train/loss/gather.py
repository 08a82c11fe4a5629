"""A batch that is spread over ranks: every rank sees all features, and its gradients go back to whom they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

_MOST_TENSORS = 6  # features of two heads and teacher rows, of two modalities


class World:
    """The ranks of one batch.

    Args:
        group: Their process group; ``None``: the default one.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.size, self._rank = dist.get_world_size(group), dist.get_rank(group)
        self._sizes: list[int] = []

    @staticmethod
    def of(group: dist.ProcessGroup | None) -> World | None:
        """The ranks of a group, or ``None`` where this process is alone.

        Raises:
            ValueError: If this process is not one of the group.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
            return None
        if dist.get_rank(group) < 0:
            raise ValueError("gather: this process is not one of the group")
        return World(group)

    @property
    def rows(self) -> slice:
        """This rank's rows of the gathered batch."""
        start = sum(self._sizes[: self._rank])
        return slice(start, start + self._sizes[self._rank])

    def agree(self, tensors: Sequence[torch.Tensor], ids: torch.Tensor | None, fault: str) -> None:
        """Exchange the batch sizes, and make sure that no rank waits for another that has stopped.

        Args:
            tensors: What this rank will gather.
            ids: Its image ids.
            fault: What is wrong with them; empty if nothing.

        Raises:
            ValueError: On every rank, if one has a fault, or if they do not bring the same.
        """
        kinds = [
            (x.shape[-1], x.dtype == torch.float64, x.requires_grad and torch.is_grad_enabled())
            for x in tensors
        ]
        brings = [int(n) for kind in kinds for n in kind] if not fault else []
        header = [
            len(tensors[0]),
            bool(fault),
            ids is not None,
            *brings,
            *[0] * (3 * _MOST_TENSORS - len(brings)),
        ]
        mine = torch.tensor(header, device=tensors[0].device)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine, group=self._group)
        table = torch.stack(everyone).tolist()
        if fault:
            raise ValueError(fault)
        for rank, (_, bad, *others) in enumerate(table):
            if bad:
                raise ValueError(
                    f"rank {rank} cannot go on: its batch is faulty; its own error says why"
                )
            if others != table[0][2:]:
                raise ValueError(
                    "the ranks do not bring the same; image ids or none, and of each matrix its columns, whether it is "
                    f"float64 and whether it wants a gradient: {table[0][2:]} on rank 0, {others} on rank {rank}"
                )
        self._sizes = [row[0] for row in table]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks, ``[N, d]``, rank after rank.

        The gradient of a rank's own rows is the sum of what all ranks' losses give them, times the number of ranks.
        """
        return _Gather.apply(self, rows)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Of all ranks, without a gradient."""
        total = values.detach().clone()
        dist.all_reduce(total, group=self._group)
        return total

    def sum_gradients(self, scalars: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The scalars, whose gradients will be the sum of all ranks'."""
        return _SumGradients.apply(self, *scalars) if scalars else scalars

    def all_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks."""
        parts = [rows.new_empty(max(self._sizes), *rows.shape[1:]) for _ in self._sizes]
        dist.all_gather(parts, self._padded(rows), group=self._group)
        return torch.cat([part[:n] for part, n in zip(parts, self._sizes, strict=True)])

    def sum_of_rows(self, everyones: torch.Tensor) -> torch.Tensor:
        """This rank's rows of the sum over ranks of ``[N, d]``."""
        parts = [self._padded(part) for part in everyones.split(self._sizes)]
        mine = torch.empty_like(parts[self._rank])
        dist.reduce_scatter(mine, parts, group=self._group)
        return mine[: self._sizes[self._rank]]

    def _padded(self, rows: torch.Tensor) -> torch.Tensor:
        missing = max(self._sizes) - len(rows)
        return (
            torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
            if missing
            else rows.contiguous()
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: World, rows: torch.Tensor) -> torch.Tensor:
        ctx.world = world
        return world.all_rows(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.world.sum_of_rows(gradient) * ctx.world.size


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: World, *scalars: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.world = world
        return tuple(x.clone() for x in scalars)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.world.sum(torch.stack(gradients)).unbind()

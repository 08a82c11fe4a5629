"""The processes that train together: their ranks and devices, and the values that they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from cusa.data.errors import SettingError, WorkerError


class Processes:
    """This process among those that torchrun started, or by itself.

    Gradients and features are exchanged in the default process group (NCCL for GPUs, gloo for
    CPUs), everything else in a gloo group of its own.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes, on all machines.
        device: The device that this process computes on.

    Raises:
        SettingError: If this machine has fewer GPUs than processes.
        WorkerError: If the processes cannot connect to each other.
    """

    def __init__(self, device: str) -> None:
        self.rank = 0
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device(device)
        if self.size == 1:
            return
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise SettingError(
                    f"process {local_rank} of this machine has no GPU of its own: there are "
                    f"{torch.cuda.device_count()}; start as many processes as there are GPUs "
                    "(torchrun --nproc-per-node)",
                    name="train.device",
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        try:
            # The others wait while the leading process writes a checkpoint, maybe to a slow disk.
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=1)
            )
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise WorkerError(
                f"WORLD_SIZE is {self.size}, but the processes cannot connect to each other "
                f"({reason}); start them with torchrun",
                name="WORLD_SIZE",
            ) from None
        self._group = dist.new_group(backend="gloo")
        self.rank = dist.get_rank()

    @property
    def leads(self) -> bool:
        """Return whether this is the process that writes files and reports."""
        return self.rank == 0

    def most(self, values: list[int]) -> list[int]:
        """Return the maximum of each value over the processes."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values)
        with _contact():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def everyones(self, value: Any) -> list[Any]:
        """Return the value of every process, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        with _contact():
            dist.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Make the block fail in all processes if it fails in one.

        Raises:
            WorkerError: In the processes where the block itself succeeded.
        """
        try:
            yield
        except BaseException:
            self.most([1])
            raise
        if self.most([0])[0]:
            raise WorkerError("another process has failed; its own message says why")

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise WorkerError(
            f"lost contact with the other processes ({reason}); go on with --resume"
        ) from None

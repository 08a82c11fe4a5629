"""The processes of a run, and how they exchange values and share queues."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from cusa.data.errors import WorkerError, first_line

_POLL_S = 0.1
# Key under which a process that failed stores its rank.
_FAILED = "failed"


@dataclass(frozen=True)
class RunProcesses:
    """This process's view of the run's processes, which share a key-value store.

    A process that runs alone has a store of its own.

    Attributes:
        rank: Number of this process among all, from 0.
        size: Number of processes, on all machines.
        local_rank: Number of this process among those on this machine, from 0.
        local_size: Number of processes on this machine.
        store: The key-value store.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: dist.Store

    @property
    def leads(self) -> bool:
        """Whether this process plans, reports, and writes the index."""
        return self.rank == 0

    def claim(self, queue: str) -> int:
        """Take the next number of a queue, 0, 1, 2, ...; each goes to one process only.

        Raises:
            WorkerError: If the key-value store is gone.
        """
        with _contact_errors():
            return self.store.add(queue, 1) - 1

    def add(
        self,
        counter: str,
        amount: int,
    ) -> int:
        """Add to a counter that all processes share, and return its new value.

        Raises:
            WorkerError: If the key-value store is gone.
        """
        with _contact_errors():
            return self.store.add(counter, amount)

    def tell(
        self,
        key: str,
        value: Any,
    ) -> None:
        """Publish a JSON-compatible value to the other processes.

        Raises:
            WorkerError: If the key-value store is gone.
        """
        with _contact_errors():
            self.store.set(key, json.dumps(value))

    def hear(
        self,
        key: str,
        while_waiting: Callable[[], None],
    ) -> Any:
        """Wait for a value that another process publishes, and return it.

        Args:
            key: Key of the value.
            while_waiting: Called ten times a second; may raise to stop.

        Raises:
            WorkerError: If another process failed, or the key-value store is gone.
        """
        with _contact_errors():
            while not self.store.check([key]):
                if self.store.check([_FAILED]):
                    failed_rank = json.loads(self.store.get(_FAILED))
                    raise WorkerError(
                        f"rank {failed_rank} failed; see its message", name=str(failed_rank)
                    )
                while_waiting()
                time.sleep(_POLL_S)
            return json.loads(self.store.get(key))

    def agree(
        self,
        key: str,
        decide: Callable[[], Any],
        while_waiting: Callable[[], None],
    ) -> Any:
        """Return the leading process's decision; the other processes wait for it.

        Args:
            key: Key of the value.
            decide: Called in the leading process alone; returns a JSON-compatible value.
            while_waiting: Called ten times a second; may raise to stop.

        Raises:
            WorkerError: If another process failed, or the key-value store is gone.
        """
        if self.leads:
            self.tell(key, decide())
        return self.hear(key, while_waiting)


def connect() -> RunProcesses:
    """Join the processes that torchrun started; without torchrun, this process runs alone.

    Raises:
        WorkerError: If the processes cannot reach each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return RunProcesses(0, 1, 0, 1, dist.HashStore())

    try:
        store, rank, size = next(dist.rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise WorkerError(
            f"WORLD_SIZE is {size}, but the processes cannot meet ({first_line(error)}); "
            "start with torchrun",
            name="WORLD_SIZE",
        ) from None

    # After a restart by torchrun, the store still has the values of the last attempt.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"cusa-{attempt}", store)
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return RunProcesses(rank, size, local_rank, local_size, store)


@contextmanager
def announced_failure(processes: RunProcesses) -> Iterator[None]:
    """Publish a failure of this process, so that those that wait for it stop, too."""
    try:
        yield
    except BaseException:
        with _contact_errors(quiet=True):
            processes.store.set(_FAILED, json.dumps(processes.rank))
        raise


@contextmanager
def _contact_errors(quiet: bool = False) -> Iterator[None]:
    """Turn the loss of the key-value store into one line, or ignore it if ``quiet``."""
    try:
        yield
    except RuntimeError as error:
        # torch raises DistError, a RuntimeError, if the process with the store is gone.
        if not quiet:
            raise WorkerError(
                f"lost contact with the other processes ({first_line(error)}); finished shards "
                "are kept, run the same command again",
            ) from None

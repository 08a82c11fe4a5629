"""The processes of one run: who they are, what they tell each other, and the queues that they share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from cusa.data.errors import CusaError

_POLL_S = 0.1


@dataclass(frozen=True)
class Ranks:
    """This process among the run's, joined by a key-value store; one process alone has a store of its own.

    Attributes:
        rank: Number of this process.
        size: Number of processes, on all machines.
        local_rank: Number on this machine.
        local_size: Processes on this machine.
        store: The store.
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
        """The next number of a queue: 0, 1, 2, ... each to one process only."""
        with _lost_contact():
            return self.store.add(queue, 1) - 1

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter; its new value."""
        with _lost_contact():
            return self.store.add(counter, amount)

    def tell(self, key: str, value: Any) -> None:
        """Let the others know a JSON-compatible value."""
        with _lost_contact():
            self.store.set(key, json.dumps(value))

    def hear(self, key: str, while_waiting: Callable[[], None]) -> Any:
        """A value that another process tells; waits for it.

        Args:
            key: Its key.
            while_waiting: Called ten times a second; may raise.

        Raises:
            CusaError: If another process failed, or the store is gone.
        """
        with _lost_contact():
            while not self.store.check([key]):
                if self.store.check(["failed"]):
                    raise CusaError(
                        f"rank {json.loads(self.store.get('failed'))} failed; see its message"
                    )
                while_waiting()
                time.sleep(_POLL_S)
            return json.loads(self.store.get(key))


def connect() -> Ranks:
    """The processes that torchrun started, or this one alone.

    Raises:
        CusaError: If the processes cannot find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(0, 1, 0, 1, dist.HashStore())
    try:
        store, rank, size = next(dist.rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0]
        raise CusaError(
            f"WORLD_SIZE is {size}, but the processes cannot meet ({first}); start with torchrun"
        ) from None
    # After a restart by torchrun the store still holds what the last attempt told.
    store = dist.PrefixStore(f"cusa-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Ranks(rank, size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", size)), store)


@contextmanager
def announced_failure(ranks: Ranks) -> Iterator[None]:
    """Let processes that wait for this one know if it fails, so that they stop, too."""
    try:
        yield
    except BaseException:
        with _lost_contact(quiet=True):
            ranks.store.set("failed", json.dumps(ranks.rank))
        raise


@contextmanager
def _lost_contact(quiet: bool = False) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # DistError: the process that holds the store is gone
        if not quiet:
            raise CusaError(
                f"lost contact with the other processes ({str(error).splitlines()[0]}); finished shards are kept, run "
                "the same command again"
            ) from None

"""The supply of a training run with tars, verified before batches use them.

The files of a set may be damaged, replaced, or in an object store. Threads of the training process
look after the tars that come next, while worker processes read batches from those that are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from threading import Lock

import numpy as np

from cusa.data.worker_pool import WorkerPool
from cusa.train.loader import Batch
from cusa.train.tars.pairs import TarSetPairs
from cusa.train.tars.source import TarSource


@dataclass(frozen=True)
class _Step:
    """A step that was looked at, but not handed on yet.

    Attributes:
        number: Its number, from 0 for the first one that was looked at.
        pairs: int64 ``[B]``, its pairs.
        arrivals: What becomes of bringing its tars.
    """

    number: int
    pairs: np.ndarray
    arrivals: list[Future[None]]


@dataclass
class _Stay:
    """How long a tar is needed, as far as was looked ahead: from a step to another.

    Attributes:
        arrival: What becomes of bringing it.
        first_step: The number of the first step that needs it.
        last_step: The number of the last step that needs it.
    """

    arrival: Future[None]
    first_step: int
    last_step: int


@dataclass(frozen=True)
class TarSupply:
    """Yields the batches of an epoch, and brings the tars that they need a window ahead.

    Attributes:
        pairs: The trainable pairs.
        names: The names of all tars.
        source: Where batches read their files from.
        n_ahead: How many further tars are brought while batches use others: those of a window.
    """

    pairs: TarSetPairs
    names: tuple[str, ...]
    source: TarSource
    n_ahead: int

    def sample(
        self,
        pairs: list[int],
    ) -> Batch:
        """Read a batch at once, in this process.

        Raises:
            CusaError: If a file, or a picture of the batch, cannot be used.
        """
        with ExitStack() as tars_in_use:
            for tar_number in self.pairs.tars_of(pairs).tolist():
                tar_name = self.names[tar_number]
                self.source.bring(tar_name)
                tars_in_use.callback(self.source.drop, tar_name)
            return self.pairs[pairs]

    def close(self) -> None:
        """Forget all tars, as no batch is read any more."""
        self.source.close()

    def read(
        self,
        pool: WorkerPool[Batch],
        order: Iterable[np.ndarray],
    ) -> Generator[Batch, None, None]:
        """Yield the batches of the steps of an order; close the generator to stop early.

        Args:
            pool: Reads the batches.
            order: The pair numbers of each step.

        Raises:
            CusaError: If a file of a tar cannot be used, before a batch needs it.
        """
        with closing(_Epoch(self)) as epoch:
            batches = pool.read(epoch.ready(iter(order)))
            for step_number, batch in enumerate(batches):
                yield batch
                epoch.drop_behind(step_number)


class _Epoch:
    """The tars of an epoch's steps: on their way, there, or dropped.

    Args:
        supply: Whose epoch it is.
    """

    def __init__(
        self,
        supply: TarSupply,
    ) -> None:
        self._supply = supply
        self._threads = ThreadPoolExecutor(supply.source.n_threads, thread_name_prefix="tars")
        self._steps: deque[_Step] = deque()
        self._stays: dict[int, _Stay] = {}
        # Steps may be asked for in another thread than the one that drops tars.
        self._lock = Lock()

    def close(self) -> None:
        """Wait for the tars that are being brought, and drop all."""
        self._threads.shutdown(cancel_futures=True)
        for tar_number in self._stays:
            self._supply.source.drop(self._supply.names[tar_number])

    def ready(
        self,
        order: Iterator[np.ndarray],
    ) -> Iterator[np.ndarray]:
        """Yield the pair numbers of each step once its tars are there."""
        numbered = enumerate(order)
        while True:
            with self._lock:
                self._look_ahead(numbered)
            if not self._steps:
                return
            step = self._steps.popleft()
            for arrival in step.arrivals:
                arrival.result()
            yield step.pairs

    def drop_behind(
        self,
        step_number: int,
    ) -> None:
        """Drop the tars that no step after this one needs, as far as was looked ahead."""
        with self._lock:
            for tar_number, stay in list(self._stays.items()):
                if stay.last_step <= step_number:
                    del self._stays[tar_number]
                    self._supply.source.drop(self._supply.names[tar_number])

    def _look_ahead(
        self,
        order: Iterator[tuple[int, np.ndarray]],
    ) -> None:
        """Begin to bring the tars of further steps, until enough are on their way."""
        while not self._steps or self._n_unused() < self._supply.n_ahead:
            step_number, pairs = next(order, (0, None))
            if pairs is None:
                return
            arrivals: list[Future[None]] = []
            for tar_number in self._supply.pairs.tars_of(pairs).tolist():
                arrivals.append(self._arrival(tar_number, step_number))
            self._steps.append(_Step(step_number, pairs, arrivals))

    def _n_unused(self) -> int:
        """Return how many tars are needed by later steps, but not by the next one or before."""
        next_step = self._steps[0].number
        n_unused = 0
        for stay in self._stays.values():
            n_unused += stay.first_step > next_step
        return n_unused

    def _arrival(
        self,
        tar_number: int,
        step_number: int,
    ) -> Future[None]:
        """Return what becomes of bringing a tar that a step needs."""
        stay = self._stays.get(tar_number)
        if stay is None:
            tar_name = self._supply.names[tar_number]
            arrival = self._threads.submit(self._supply.source.bring, tar_name)
            stay = self._stays[tar_number] = _Stay(arrival, step_number, step_number)
        stay.last_step = step_number
        return stay.arrival

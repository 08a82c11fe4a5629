"""Worker processes that read items ahead; one that dies raises an error instead of hanging the run.

Each worker has its own connection to the reading process. When a worker is killed, even halfway
through a message, that connection closes; workers share no lock or queue for which the others could
wait forever. Arrays and tensors are passed in anonymous shared memory, which takes no room in
/dev/shm, or through the connection on systems without it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice, repeat, takewhile
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, Generic, Literal, Protocol, TypeVar
from weakref import WeakSet

from cusa.data.errors import CusaError, WorkerError
from cusa.data.worker_messages import receive, send

StartMethod = Literal["fork", "forkserver", "spawn"]
Key = TypeVar("Key", contravariant=True)
Item = TypeVar("Item", covariant=True)
T = TypeVar("T")
Result = TypeVar("Result")

# One that the worker is reading, and one waiting.
_REQUESTS_PER_WORKER = 2
# Seconds to wait for a killed process to end.
_EXIT_PATIENCE_S = 5.0
# Higher than the priority of multiprocessing's own finalizers.
_EXIT_PRIORITY = 10
# This process's ends of the connections of all pools; forked workers inherit them.
_parent_connections: WeakSet[Connection] = WeakSet()


class Readable(Protocol[Key, Item]):
    """Anything that returns an item for a key."""

    def __getitem__(self, key: Key, /) -> Item:
        """Read an item."""
        ...


class WorkerPool(Generic[T]):
    """A pool of processes that read items.

    The processes start with the first :meth:`read`, and end with :meth:`close`.

    Args:
        readable: Returns an item for a key. Keys and items must be picklable; so must ``readable``
            itself, unless workers are forked.
        workers: Number of worker processes; 0 reads in this process.
        start_method: How workers start; ``None`` is the system's default.
        pin: Whether to copy items to page-locked memory, for transfers to a GPU; see
            :func:`pinned`.
    """

    def __init__(
        self,
        readable: Readable[Any, T],
        workers: int,
        start_method: StartMethod | None = None,
        pin: bool = False,
    ) -> None:
        self._readable = readable
        self._n_workers = workers
        self._pin = pin
        self._context: Any = multiprocessing.get_context(start_method)
        self._workers: list[_Worker] = []

    @property
    def process_ids(self) -> list[int]:
        """Return the process ids of the running workers."""
        return [worker.process.pid for worker in self._workers]

    def read(self, keys: Iterable[Any]) -> Generator[T, None, None]:
        """Yield items in the order of their keys; keys are consumed as late as possible.

        Raises:
            WorkerError: If a worker is killed or exits.
            Exception: Whatever ``readable`` raises, with the same class and fields.
        """
        items: Iterator[T]
        if self._n_workers:
            self._start()
            items = self._in_turns(iter(keys))
        else:
            items = map(self._readable.__getitem__, keys)
        if self._pin:
            items = map(pinned, items)
        if self._pin and self._n_workers:
            items = prefetched(items, depth=1)
        yield from items

    def close(self) -> None:
        """End the workers; a later :meth:`read` starts new ones."""
        _kill_all(self._workers)

    def _start(self) -> None:
        if self._workers:
            return
        # At exit, multiprocessing sends SIGTERM to workers, which ignore it, and waits for them.
        # This finalizer runs earlier, thanks to its priority, and kills them.
        Finalize(self, _kill_all, (self._workers,), exitpriority=_EXIT_PRIORITY)
        with _signals_blocked():
            for _ in range(self._n_workers):
                self._workers.append(_Worker(self._context, self._readable))

    def _in_turns(self, keys: Iterator[Any]) -> Iterator[Any]:
        """Yield items; keys are sent to the workers in turn, so answers are in order."""
        pending: deque[_Worker] = deque()

        def request_next(worker: _Worker) -> None:
            for key in islice(keys, 1):
                worker.request(key)
                pending.append(worker)

        try:
            for worker in self._workers * _REQUESTS_PER_WORKER:
                request_next(worker)
            while pending:
                worker = pending.popleft()
                answer = worker.answer()
                request_next(worker)
                if isinstance(answer, _Failure):
                    raise answer.error
                yield answer
        except BaseException:
            # Otherwise the next read would get the answers to these requests.
            self.close()
            raise


def prefetched(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield the same items, with up to ``depth`` of them computed ahead by a thread."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        try:
            computed = mapped_ahead(thread, lambda _: next(items, end), repeat(None), depth)
            yield from takewhile(lambda item: item is not end, computed)
        finally:
            thread.shutdown(cancel_futures=True)


def mapped_ahead(
    threads: Executor, function: Callable[[T], Result], items: Iterable[T], depth: int
) -> Iterator[Result]:
    """Yield a function's results in the order of the items, computing up to ``depth`` ahead."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(threads.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    for result in pending:
        yield result.result()


def pinned(item: Any) -> Any:
    """Copy an item, or each value of a mapping, to page-locked memory if it has ``pin_memory``."""
    if hasattr(item, "pin_memory"):
        return item.pin_memory()
    if isinstance(item, Mapping):
        return {name: pinned(value) for name, value in item.items()}
    return item


# --- in the reading process


class _Worker:
    """A worker process, as the reading process sees it."""

    def __init__(self, context: Any, readable: Readable[Any, Any]) -> None:
        self._connection, worker_end = context.Pipe()
        _parent_connections.add(self._connection)
        self.process = context.Process(target=_serve, args=(worker_end, readable), daemon=True)
        self.process.start()
        # With the worker holding the only copy, the connection closes when the worker dies.
        worker_end.close()

    def request(self, key: Any) -> None:
        """Ask for an item; if the process has ended, :meth:`answer` raises, not this method.

        So the items that were read before, by this worker or others, are still received.
        """
        with suppress(ConnectionError):
            self._connection.send(key)

    def answer(self) -> Any:
        """Receive the next requested item, or a ``_Failure``.

        Raises:
            WorkerError: If the process has ended.
        """
        try:
            return receive(self._connection)
        except (EOFError, ConnectionError):
            process = f"process {self.process.pid}"
            message = f"worker {process} {self._cause_of_death()}"
            raise WorkerError(message, name=process) from None

    def kill(self) -> None:
        """Kill the process; it only reads, so nothing is lost."""
        self._connection.close()
        self.process.kill()

    def _cause_of_death(self) -> str:
        self.process.join(_EXIT_PATIENCE_S)
        status = self.process.exitcode
        if status is None or status >= 0:
            return f"exited with status {status}; pass --workers 0 to see why"
        return (
            f"was killed by {signal.Signals(-status).name}, possibly because memory ran out; "
            "pass fewer --workers, or --workers 0 to read in the main process"
        )


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.process.join(_EXIT_PATIENCE_S)
    workers.clear()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes with SIGINT and SIGTERM blocked; the reading process handles them."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


# --- in a worker


class _Failure:
    """An exception sent in place of an item."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _serve(connection: Connection, readable: Readable[Any, Any]) -> None:
    """Answer requests until the reading process closes the connection or dies."""
    import torch

    for inherited in _parent_connections:
        # An inherited copy would keep the connection open after the parent's death.
        inherited.close()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # There is one worker per core.
    torch.set_num_threads(1)
    keys: SimpleQueue[Any] = SimpleQueue()
    # A thread receives requests at once, or both processes could block, each sending to the other.
    threading.Thread(target=_receive_keys, args=(connection, keys.put), daemon=True).start()
    with suppress(ConnectionError):
        while True:
            send(connection, _item_or_failure(readable, keys.get()))


def _receive_keys(connection: Connection, put: Callable[[Any], None]) -> None:
    try:
        while True:
            put(connection.recv())
    except (EOFError, OSError):
        # Exit even halfway through an item, since nobody waits for it.
        os._exit(0)


def _item_or_failure(readable: Readable[Any, Any], key: Any) -> Any:
    try:
        return readable[key]
    except Exception as error:
        if not isinstance(error, CusaError):
            error.add_note("".join(traceback.format_exception(error)))  # pickling drops it
        return _Failure(_picklable(error))


def _picklable(error: Exception) -> Exception:
    try:
        # Safe to unpickle, as it was pickled here.
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception class may raise anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

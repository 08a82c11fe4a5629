"""Items that worker processes read ahead; one that dies is an error, whenever it dies, and never a wait.

Every worker has a connection of its own to the process that reads. If it is killed, even in the middle of a message,
that connection ends, and nothing that others need is held by it. Arrays and tensors lie in anonymous shared memory,
which does not count against the size of /dev/shm; where the system has none, they come through the connection.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, Generic, Literal, Protocol, TypeVar
from weakref import WeakSet

from cusa.data.errors import CusaError, WorkerError

StartMethod = Literal["fork", "forkserver", "spawn"]
Key = TypeVar("Key", contravariant=True)
Item = TypeVar("Item", covariant=True)
T = TypeVar("T")

_AHEAD = 2  # items per worker that are asked for and not taken yet
_ALIGNMENT = 64  # bytes: where arrays begin in shared memory
_PATIENCE_S = 5.0  # for a process that ended to be seen as such
_asking_ends: WeakSet[Connection] = WeakSet()  # of all connections to workers; forked ones inherit copies


class Readable(Protocol[Key, Item]):
    """What is read: an item by key."""

    def __getitem__(self, key: Key, /) -> Item:
        """The item."""
        ...


class WorkerPool(Generic[T]):
    """Reads items in worker processes, which begin with the first :meth:`read` and stay until :meth:`close`.

    Args:
        readable: Gives an item for a key; with workers, both must be picklable, ``readable`` unless workers are forked.
        workers: Processes; 0 reads in this one.
        start_method: How they begin; ``None``: as is usual on this system.
        pin: Whether items come in page-locked memory, for copies to a GPU: their ``pin_memory`` is called, that of
            each value of a mapping.
    """

    def __init__(
        self, readable: Readable[Any, T], workers: int, start_method: StartMethod | None = None, pin: bool = False
    ) -> None:
        self._readable, self._n_workers, self._pin = readable, workers, pin
        self._context: Any = multiprocessing.get_context(start_method)
        self._workers: list[_Worker] = []

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that have begun."""
        return [worker.process.pid for worker in self._workers]

    def read(self, keys: Iterable[Any]) -> Generator[T, None, None]:
        """Items in the order of their keys; a key is taken as late as reading ahead allows.

        Raises:
            WorkerError: If a worker is killed, or ends by itself.
            Exception: What ``readable`` raises, as it is.
        """
        items = self._in_turns(iter(keys)) if self._n_workers else map(self._readable.__getitem__, keys)
        if self._n_workers:
            self._start()
        if self._pin:
            items = map(pinned, items)
            items = in_advance(items, depth=1) if self._n_workers else items
        yield from items

    def close(self) -> None:
        """End the workers."""
        _end(self._workers)

    def _start(self) -> None:
        if self._workers:
            return
        # Runs before multiprocessing would wait for them at exit: they leave its SIGTERM to this process.
        Finalize(self, _end, (self._workers,), exitpriority=10)
        with _signals_blocked():
            for _ in range(self._n_workers):
                self._workers.append(_Worker(self._context, self._readable))

    def _in_turns(self, keys: Iterator[Any]) -> Iterator[Any]:
        """Each worker in turn is asked for an item, so that the answers come in order."""
        asked: deque[_Worker] = deque()

        def ask(worker: _Worker) -> None:
            for key in islice(keys, 1):
                worker.ask(key)
                asked.append(worker)

        try:
            for worker in self._workers * _AHEAD:
                ask(worker)
            while asked:
                worker = asked.popleft()
                answer = worker.answer()
                ask(worker)
                if isinstance(answer, _Failure):
                    raise answer.error
                yield answer
        except BaseException:
            self.close()  # what was asked for must not come as an answer to a later question
            raise


def in_advance(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, up to ``depth`` of them made in advance by a thread."""
    with ThreadPoolExecutor(1) as thread:
        end = object()
        waiting: deque[Future[Any]] = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def pinned(item: Any) -> Any:
    """An item, or the values of a mapping, in page-locked memory; what knows none stays as it is."""
    if hasattr(item, "pin_memory"):
        return item.pin_memory()
    if isinstance(item, Mapping):
        return {name: pinned(value) for name, value in item.items()}
    return item


# --- in the process that reads


class _Worker:
    """A worker process, as seen from the process that started it."""

    def __init__(self, context: Any, readable: Readable[Any, Any]) -> None:
        self._connection, its_end = context.Pipe()
        _asking_ends.add(self._connection)
        self.process = context.Process(target=_serve, args=(its_end, readable), daemon=True)
        self.process.start()
        its_end.close()  # or the connection would not end with the process

    def ask(self, key: Any) -> None:
        """Ask for an item.

        Raises:
            WorkerError: If the process has ended.
        """
        with self._ended_is_an_error():
            self._connection.send(key)

    def answer(self) -> Any:
        """The next item asked for, or a ``_Failure``.

        Raises:
            WorkerError: If the process has ended.
        """
        with self._ended_is_an_error():
            return _receive(self._connection)

    def kill(self) -> None:
        """End the process; it only reads, there is nothing to be finished."""
        self._connection.close()
        self.process.kill()

    @contextmanager
    def _ended_is_an_error(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            raise WorkerError(self._how_it_ended(), name=f"process {self.process.pid}") from None

    def _how_it_ended(self) -> str:
        self.process.join(_PATIENCE_S)
        status, worker = self.process.exitcode, f"worker process {self.process.pid}"
        if status is not None and status < 0:
            return (
                f"{worker} was killed by {signal.Signals(-status).name}, possibly because memory ran out; pass fewer "
                "--workers, or --workers 0 to read in the main process"
            )
        return f"{worker} ended with status {status} before its work was done; pass --workers 0 to see why"


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.process.join(_PATIENCE_S)
    workers.clear()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that begin here never get SIGINT or SIGTERM, not even while they begin: this process decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in a worker


class _Failure:
    """An exception in an item's place."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _serve(connection: Connection, readable: Readable[Any, Any]) -> None:
    """Answer questions until the other process ends the connection, or has ended itself."""
    import torch

    for asking_end in _asking_ends:
        asking_end.close()  # a copy, which would keep the connection from ending with the other process
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # there is a worker per core; and threads of before a fork are gone
    keys: SimpleQueue[Any] = SimpleQueue()
    # Questions are taken off at once: both sides could otherwise wait for the other one to read.
    threading.Thread(target=_take_questions, args=(connection, keys.put), daemon=True).start()
    with suppress(ConnectionError):  # the other process has ended, or no longer wants it
        while True:
            _send(connection, _item_or_failure(readable, keys.get()))


def _take_questions(connection: Connection, put: Callable[[Any], None]) -> None:
    try:
        while True:
            put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # in the middle of an item, too: nobody waits for it


def _item_or_failure(readable: Readable[Any, Any], key: Any) -> Any:
    try:
        return readable[key]
    except Exception as error:
        if not isinstance(error, CusaError):
            error.add_note("".join(traceback.format_exception(error)))  # which does not travel
        return _Failure(_picklable(error))


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own class may raise
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# --- the connection


class _Pickler(pickle.Pickler):
    """Leaves the bytes of arrays to the buffers, and those of tensors, which torch would not."""

    def reducer_override(self, value: Any) -> Any:
        """How tensors are pickled: as arrays."""
        import torch

        if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _send(connection: Connection, value: Any) -> None:
    """Write what :func:`_receive` reads: a pickle, where the bytes of its arrays are, and these bytes."""
    file, buffers = BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [buffer.raw() for buffer in buffers]
    sizes = [view.nbytes for view in views]
    memory = _shared_memory(sum(map(_aligned, sizes)))
    connection.send((file.getbuffer().tobytes(), sizes, memory is not None))
    if memory is None:
        for view in views:
            connection.send_bytes(view)
        return
    try:
        _fill(memory, views)
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            socket.send_fds(channel, [b"\0"], [memory])
    finally:
        os.close(memory)


def _receive(connection: Connection) -> Any:
    """Read what :func:`_send` wrote; its arrays may be written to.

    Raises:
        EOFError: If the other process ends before all of it is there.
    """
    try:
        pickled, sizes, shared = connection.recv()
        if not shared:
            buffers = [bytearray(size) for size in sizes]
            for buffer in buffers:
                connection.recv_bytes_into(buffer)
            return pickle.loads(pickled, buffers=buffers)
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    except OSError as error:
        if error.errno is None:  # so Connection tells that a message is torn
            raise EOFError from None
        raise
    if not message:
        raise EOFError
    if not descriptors:
        raise OSError(errno.EMFILE, "too many open files: batches are held that are no longer needed")
    return pickle.loads(pickled, buffers=_slices(descriptors[0], sizes))


def _shared_memory(n_bytes: int) -> int | None:
    """A file descriptor of anonymous memory; ``None`` where there is none to be had, or nothing to be put there."""
    if not n_bytes or not hasattr(os, "memfd_create"):
        return None
    try:
        memory = os.memfd_create("cusa")
    except OSError:
        return None
    try:
        os.posix_fallocate(memory, 0, n_bytes)  # now: memory that is short would else be a bus error while writing
    except OSError:
        os.close(memory)
        return None
    return memory


def _fill(memory: int, views: Sequence[memoryview]) -> None:
    with mmap.mmap(memory, 0) as mapped:
        start = 0
        for view in views:
            mapped[start : start + view.nbytes] = view
            start += _aligned(view.nbytes)


def _slices(memory: int, sizes: Sequence[int]) -> list[memoryview]:
    """The arrays' bytes in shared memory, which lives as long as one of them."""
    try:
        whole = memoryview(mmap.mmap(memory, 0))
    finally:
        os.close(memory)
    views, start = [], 0
    for size in sizes:
        views.append(whole[start : start + size])
        start += _aligned(size)
    return views


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT

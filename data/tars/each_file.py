"""Reading of the files of a set, by this process or by processes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cusa.data.objects.folder import is_remote
from cusa.data.tars.set_files import SetFiles
from cusa.data.worker_pool import Readable, StartMethod, WorkerPool

T = TypeVar("T")
_THREADS = 4


@dataclass(frozen=True)
class SetReader:
    """Reads files of a set in whichever process it is.

    Attributes:
        location: Path or URL of the folder of the set.
    """

    location: Path

    @cached_property
    def files(self) -> SetFiles:
        """The files of the set; each process has its own connection to an object store."""
        return SetFiles(self.location)


def read_each(
    location: Path,
    readable: Readable[Any, T],
    keys: Iterable[Any],
    processes: int,
    parses: bool,
) -> Iterator[T]:
    """Yield what is read for each key, in order.

    Checksums and fetching leave Python to other threads, but parsing HDF5 does not: threads that
    parse wait for each other, for longer than they parse. So one process reads by threads where
    they have something else to wait for, and on machines of many cores several processes are
    faster.

    Args:
        location: Path or URL of the folder of the set.
        readable: Returns what is read for a key; picklable, as are keys and what is read.
        keys: The keys.
        processes: Number of processes; 1: this one.
        parses: Whether files are parsed, rather than only hashed.

    Raises:
        WorkerError: If a process is killed.
        Exception: Whatever ``readable`` raises.
    """
    if processes == 1 and parses and not is_remote(location):
        yield from map(readable.__getitem__, keys)
        return
    if processes == 1:
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from threads.map(readable.__getitem__, keys)
        return
    # obstore's threads do not survive a fork.
    start_method: StartMethod | None = "spawn" if is_remote(location) else None
    with closing(WorkerPool(readable, processes, start_method)) as pool:
        yield from pool.read(keys)

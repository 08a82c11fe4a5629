"""Threads that compute on one core each: parts of a whole, which all cores on one part at a time would take longer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads compute on one core each; what they have not begun is dropped if the block fails.

    Args:
        n: Threads.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch keeps a number per thread, but MKL one for all

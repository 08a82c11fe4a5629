"""Threads that compute on one core each.

Many small matrix products finish sooner if each core computes one of them than if all cores share
each in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_threads(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads, in each of which torch computes on one core.

    If the block fails, tasks that have not started are cancelled.

    Args:
        n_threads: Number of threads.
    """
    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        n_threads,
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # torch keeps the number of threads per thread, but MKL keeps one for the whole process.
        torch.set_num_threads(threads_before)

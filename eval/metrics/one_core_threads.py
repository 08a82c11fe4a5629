"""Threads that compute on one core each.

Many small products, one per core, are done earlier than the same products one after the other on
all cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_threads(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads in each of which torch computes on one core.

    Tasks that have not begun are dropped if the block fails.

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
        # torch keeps a number per thread, but MKL one for the whole process.
        torch.set_num_threads(threads_before)

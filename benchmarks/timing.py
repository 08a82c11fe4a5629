"""Timing that several benchmarks share, and how a benchmark is kept running.

Every script here has a click command ``main`` and ``SMOKE``: the arguments of runs that take
seconds on tiny inputs. tests/benchmarks/test_scripts.py takes these runs, so that a script keeps
running when what it measures changes. A name in braces stands for an input of the tests, such as
``{store}``.
"""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of one call, in all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turns(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[Callable[[], object]], float] = seconds,
) -> dict[str, list[float]]:
    """Seconds of each way by round, after one to warm up; who goes first changes with the round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in list(ways.items())[:: -1 if number % 2 else 1]:
            taken = clock(work)
            if number:
                found[name].append(taken)
    return found


def in_fresh_process(measure: Callable[..., None], *arguments: Any) -> Any:
    """What ``measure`` puts into the queue that it gets as its last argument.

    The process is spawned: forked, it would begin with this one's memory.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=measure, args=(*arguments, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a process that measures {arguments} ended with {process.exitcode}")
    return answer.get()


def mean_and_deviation(values: Sequence[float]) -> str:
    """As tables show figures of several seeds; of one, the deviation is 0."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} +- {deviation:.1f}"


def machine() -> dict[str, str | int]:
    """What results were measured on."""
    return {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }

"""Processes that tests start and wait for, though not forever."""

from multiprocessing.process import BaseProcess

PATIENCE_S = 120


def status_at_end(process: BaseProcess, patience_s: float = PATIENCE_S) -> int | None:
    """Wait until a process has ended; its status.

    One that goes on is killed, as the tests' own process would wait for it at its end; its status
    is ``None``.
    """
    try:
        process.join(patience_s)
        return process.exitcode
    finally:
        process.kill()
        process.join()

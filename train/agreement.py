"""The agreement of all processes, after each step, on whether training goes on."""

from __future__ import annotations

from collections.abc import Callable

from cusa.data.errors import CusaError, Stopped, StudentError
from cusa.train.keeper import RunKeeper
from cusa.train.processes import Processes


def agree_to_go_on(
    processes: Processes,
    keeper: RunKeeper,
    check_stop: Callable[[], None],
    fault: CusaError | None,
    not_finite: str,
) -> None:
    """Stop all processes if one of them cannot go on, and save a checkpoint if one is due.

    Args:
        processes: The processes that train; all of them must call.
        keeper: Writes the checkpoint.
        check_stop: Raises :class:`Stopped` if this process is asked to stop.
        fault: Why this process could not read its next batch, if it could not.
        not_finite: Why its last loss or gradient is not finite; empty if it is.

    Raises:
        Stopped: If any process is asked to stop; a checkpoint is saved.
        CusaError: If any process has a fault, of its own kind; a checkpoint is saved.
        StudentError: If any process has a loss or gradient that is not finite.
    """
    cannot_read = fault is not None
    signal = _stop_signal(check_stop)
    is_due = processes.leads and keeper.checkpoint_is_due()
    # One exchange for all four, since each exchange costs a message to every process.
    any_cannot_read, any_not_finite, any_signal, any_is_due = processes.most(
        [cannot_read, bool(not_finite), signal, is_due]
    )
    # No checkpoint here: the run would resume at the same step, with the same loss.
    if any_not_finite:
        elsewhere = "another process has a loss that is not finite; its own message says why"
        raise StudentError(not_finite or elsewhere)
    if any_cannot_read or any_signal or any_is_due:
        keeper.save_checkpoint()
    if any_cannot_read:
        raise keeper.resumable(fault)
    if any_signal:
        raise Stopped.by(any_signal)


def _stop_signal(check_stop: Callable[[], None]) -> int:
    """Return the signal that asks this process to stop, or 0."""
    try:
        check_stop()
    except Stopped as stopped:
        return stopped.signal
    return 0

"""Ctrl-C and SIGTERM, delayed until a stage can be interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cusa.data.errors import Stopped

_STOPPING = (signal.SIGINT, signal.SIGTERM)
# A launcher passes Ctrl-C on to its processes, which received it, too; a second one within this
# time is taken for the same.
_SECOND_SIGNAL_S = 1.0


@contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """Delay SIGTERM and Ctrl-C until the work can be interrupted.

    Yields a function that raises :class:`cusa.data.errors.Stopped` if a signal has arrived. Before
    its first call, when there is nothing to keep yet, a signal raises it at once. A second Ctrl-C
    has its usual effect if it comes more than a second later; further SIGTERMs have none. Outside
    the main thread, which alone receives signals, nothing is delayed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    delayed = _DelayedSignals()
    for number in _STOPPING:
        signal.signal(number, delayed.remember)
    try:
        yield delayed.check
    finally:
        delayed.restore_handlers()


class _DelayedSignals:
    """The signals that have arrived, and the handlers from before."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._first_at = 0.0
        self._is_working = False
        self._handlers = {number: signal.getsignal(number) for number in _STOPPING}

    def remember(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self._received:
            self._first_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first_at > _SECOND_SIGNAL_S:
            # The user does not want to wait, so the previous handlers take over.
            self.restore_handlers()
            signal.raise_signal(number)
        self._received.append(number)
        # During imports and set-up, there is nothing to keep.
        if not self._is_working:
            raise Stopped.by(number)

    def check(self) -> None:
        """Raise if a signal has arrived; from the first call on, signals only arrive here."""
        self._is_working = True
        if self._received:
            raise Stopped.by(self._received[0])

    def restore_handlers(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

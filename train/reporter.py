"""The events of a run, for a command line or a log to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cusa.data.errors import Stopped

if TYPE_CHECKING:
    from cusa.train.trainer import Trainer

# How training ends: at its last epoch, by a signal, or by an error.
Outcome = Literal["finished", "stopped", "failed"]


class Reporter(Protocol):
    """Shows a run, in the leading process."""

    def started(self, trainer: Trainer) -> None:
        """Show the run before its first step."""
        ...

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Show a step that is logged: the entries of its line in metrics.jsonl."""
        ...

    def validated(self, metrics: dict[str, Any]) -> None:
        """Show a validation: the entries of its line in metrics.jsonl."""
        ...

    def warned(self, text: str) -> None:
        """Show a problem that training survives."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """Show that training has ended; called even if the run was not started."""
        ...


@contextmanager
def report_end(reporters: Sequence[Reporter]) -> Iterator[None]:
    """Tell reporters how a block of training ends."""
    outcome: Outcome = "failed"
    try:
        yield
        outcome = "finished"
    except Stopped:
        outcome = "stopped"
        raise
    finally:
        for reporter in reporters:
            reporter.ended(outcome)

"""The events of a run, for a command line or a log to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cusa.train.trainer import Trainer


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

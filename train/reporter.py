"""What a command line, or a log of its own kind, is told of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cusa.train.trainer import Trainer


class Reporter(Protocol):
    """What a command line shows of a run."""

    def started(self, trainer: Trainer) -> None:
        """Called once everything is set up."""
        ...

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Called after every step that is logged."""
        ...

    def validated(self, metrics: dict[str, Any]) -> None:
        """Called after every epoch."""
        ...

    def warned(self, text: str) -> None:
        """Called when something went wrong that training survives."""
        ...

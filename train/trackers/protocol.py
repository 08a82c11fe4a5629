"""What a tracker of experiments is told of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cusa.train.reporter import Outcome

DEFAULT_PROJECT = "cusa"

Figures = Mapping[str, float]  # by name, such as "val/rsum"


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker shows it.

    Attributes:
        run_dir: Its directory.
        project: The project to show it in; ``None`` for the tracker's own environment variable, or
            else :data:`DEFAULT_PROJECT`.
        settings: Its settings by full name; JSON-compatible.
        facts: What else distinguishes it: versions of packages, data set, teachers, device.
        steps_done: Optimizer steps that are done; 0 for a new run.
        tracked_id: The id that the tracker returned when the run was begun; empty if it was not
            tracked.
    """

    run_dir: Path
    project: str | None
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    steps_done: int
    tracked_id: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """Return settings and facts together."""
        return {**self.settings, **self.facts}

    def project_or(self, variable: str) -> str:
        """Return the project; if none is set, that of an environment variable, or the default."""
        return self.project or os.environ.get(variable) or DEFAULT_PROJECT


class Tracker(Protocol):
    """Shows runs of a training in a service or in files; any method may raise any ``Exception``."""

    def begin(self, tracked_run: TrackedRun) -> str:
        """Begin to track a run, or go on with the tracked run of ``tracked_id``; return its id."""
        ...

    def log(self, figures: Figures, step_number: int) -> None:
        """Log figures of a step.

        Args:
            figures: The figures by name, such as ``"train/loss"`` and ``"val/rsum"``.
            step_number: Optimizer steps done. The steps after a checkpoint are logged again when a
                run is resumed from it.
        """
        ...

    def end(self, summary: Figures, outcome: Outcome) -> None:
        """Add the figures that sum up the run, and close the tracked run.

        Args:
            summary: The figures by name.
            outcome: How training ended; a run that was stopped may be resumed.
        """
        ...

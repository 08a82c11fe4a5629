"""Runs in Trackio: a local dashboard, or a Space of the Hugging Face hub (``TRACKIO_SPACE_ID``)."""

from __future__ import annotations

import secrets

from cusa.train.reporter import Outcome
from cusa.train.trackers.protocol import Figures, TrackedRun


class TrackioTracker:
    """Logs to Trackio; ``trackio show`` opens its dashboard."""

    def __init__(self) -> None:
        import trackio

        self._trackio = trackio

    def begin(self, tracked_run: TrackedRun) -> str:
        """Begin a run, or resume the one of that name."""
        # Trackio finds runs by name, so that of two runs in folders of one name must differ.
        name = tracked_run.tracked_id
        if not name:
            suffix = secrets.token_hex(3)
            name = f"{tracked_run.run_dir.name}-{suffix}"
        self._run = self._trackio.init(
            project=tracked_run.project_or("TRACKIO_PROJECT"),
            name=name,
            config=tracked_run.config,
            resume="allow",
            embed=False,
        )
        return name

    def log(self, figures: Figures, step_number: int) -> None:
        """Log figures of a step."""
        self._run.log(dict(figures), step=step_number)

    def end(self, summary: Figures, outcome: Outcome) -> None:
        """Log the summary as figures of the next step, and finish the run."""
        self._run.log(dict(summary))
        self._run.finish()

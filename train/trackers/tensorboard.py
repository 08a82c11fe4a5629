"""Runs as TensorBoard files."""

from __future__ import annotations

from cusa.train.reporter import Outcome
from cusa.train.trackers.protocol import Figures, TrackedRun

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes ``tensorboard/`` in the run's directory."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class = SummaryWriter

    def begin(self, tracked_run: TrackedRun) -> str:
        """Open the files; TensorBoard drops what a resumed run wrote after its checkpoint."""
        folder = str(tracked_run.run_dir / FOLDER)
        steps_done = tracked_run.steps_done
        self._writer = self._writer_class(folder, purge_step=steps_done + 1)
        lines = []
        for name, value in tracked_run.config.items():
            lines.append(f"    {name}: {value}")  # verbatim in Markdown
        self._writer.add_text("config", "\n".join(lines), steps_done)
        return FOLDER

    def log(self, figures: Figures, step_number: int) -> None:
        """Write figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step_number)
        self._writer.flush()

    def end(self, summary: Figures, outcome: Outcome) -> None:
        """Close the files, which have no place for a summary."""
        self._writer.close()

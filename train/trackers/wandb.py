"""Runs on Weights & Biases, or in its files (``WANDB_MODE=offline``)."""

from __future__ import annotations

import os

from cusa.data.errors import SettingError, first_line
from cusa.train.reporter import Outcome
from cusa.train.trackers.protocol import Figures, TrackedRun


class WandbTracker:
    """Logs to Weights & Biases; its own environment variables apply, such as ``WANDB_ENTITY``.

    Raises:
        SettingError: If no account is configured.
    """

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        try:
            # Here, since its prompt for a key would be lost under the progress bar.
            wandb.login()
        except wandb.errors.UsageError as error:
            raise SettingError(
                f"--report-to wandb: {first_line(error)} Or keep the run in files: "
                "WANDB_MODE=offline",
                name="train.report_to",
            ) from None
        except wandb.errors.Error:
            # The network may be back when the run begins; otherwise its first call warns.
            pass

    def begin(self, tracked_run: TrackedRun) -> str:
        """Begin a run, or resume the one of that id."""
        self._run = self._wandb.init(
            project=tracked_run.project_or("WANDB_PROJECT"),
            name=tracked_run.run_dir.name,
            id=tracked_run.tracked_id or None,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(tracked_run.run_dir),
            config=tracked_run.config,
            allow_val_change=True,
            # A notebook may have a run of its own.
            reinit="create_new",
        )
        # wandb's own step cannot go back to a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, figures: Figures, step_number: int) -> None:
        """Log figures of a step."""
        self._run.log({**figures, "step": step_number})

    def end(self, summary: Figures, outcome: Outcome) -> None:
        """Update the summary and finish the run."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(outcome != "finished"))

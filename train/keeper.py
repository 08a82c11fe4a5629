"""What a run leaves on disk, also where that is full: checkpoints, the best student, the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from cusa.train.commands import resume_command
from cusa.train.run_setup import RunSetup
from cusa.train.saving.model_card import write_card
from cusa.train.saving.run_dir import Checkpoints, MetricsLog, save_run
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import BEST_FOLDER, WEIGHTS_FILE, Origin, save_student
from cusa.train.saving.tensors import with_prefix
from cusa.train.training_state import TrainingState


class RunKeeper:
    """Writes the files of a run, in the leading process; what cannot be written is survived.

    Args:
        setup: What the run trains with.
        state: What training changes.
        progress: How far the run is; at first, that of its newest checkpoint.
        warn: Told what could not be written.

    Attributes:
        saved_step: Step of the newest checkpoint; 0 if there is none.
    """

    def __init__(
        self,
        setup: RunSetup,
        state: TrainingState,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self.saved_step = progress.step
        self._setup = setup
        self._state = state
        self._progress = progress
        self._warn = warn
        self._processes = setup.processes
        self._best_folder = setup.run_dir / BEST_FOLDER
        self._checkpoints = Checkpoints(setup.run_dir)
        self._log = MetricsLog(setup.run_dir)
        self._saved_at = time.monotonic()
        self._lost_epoch = 0  # whose student is the best and could not be saved

    def begin(self) -> None:
        """Write what a run begins with; remove what lies after where it goes on from."""
        setup = self._setup
        progress = self._progress
        is_new = progress.step == 0  # later, a checkpoint goes on with the configuration it has
        if is_new and setup.backbone is not None and setup.processors is not None:
            setup.backbone.config.save_pretrained(self._best_folder)
            setup.processors.save(self._best_folder)
        # What a run did after its newest whole checkpoint is done again.
        self._checkpoints.tidy(progress.step)
        self._log.trim(progress.step, progress.epoch)
        save_run(setup.run_dir, setup.config, setup.provenance)

    def log(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl; one that cannot be written is written with the next."""
        if not self._processes.leads:
            return
        try:
            self._log.append(line)
        except OSError as error:
            problem = f"the log could not be written ({_reason(error)})"
            self._warn(f"{problem}; its lines are kept and tried again")

    def checkpoint_is_due(self) -> bool:
        """Tell whether a checkpoint is due after the last step."""
        step = self._progress.step
        if step == self.saved_step:
            return False
        steps = self._setup.config.train.checkpoint_steps
        if steps is not None and step % steps == 0:
            return True
        minutes = self._setup.config.train.checkpoint_minutes
        seconds = time.monotonic() - self._saved_at
        return minutes is not None and seconds >= 60 * minutes

    def save_checkpoint(
        self, scores: Mapping[str, float] | None = None, epoch_ended: bool = False
    ) -> None:
        """Save all that the run goes on from; if that fails, the last one stays.

        All processes take part, with their random states.

        Args:
            scores: Of the validation split with these weights, if it was measured.
            epoch_ended: Save again where the epoch's last step is saved already.
        """
        progress = self._progress
        # Each process has dropout masks of its own.
        random_states = self._processes.everyones(self._state.random_states())
        if self._processes.leads and (progress.step != self.saved_step or epoch_ended):
            tensors = self._state.tensors()
            for rank, states in enumerate(random_states):
                tensors |= with_prefix(f"rng.{rank}", states)
            epoch = progress.epochs_begun(self._setup.data.steps_per_epoch)
            meta = {
                "origin": self._origin(epoch, scores or {}).to_dict(),
                "progress": asdict(progress),
                "scaler": self._state.scaler(),
            }
            try:
                self._checkpoints.save(progress.step, tensors, meta)
                self.saved_step = progress.step
            except OSError as error:
                checkpoint = f"the checkpoint of step {progress.step}"
                problem = f"{checkpoint} could not be written ({_reason(error)})"
                self._warn(f"{problem}; that of step {self.saved_step} stays")
        # The leading process alone knows whether it could write.
        self.saved_step = self._processes.everyones(self.saved_step)[0]
        self._saved_at = time.monotonic()

    def save_best(self, epoch: int, scores: Mapping[str, float]) -> bool:
        """Save the student of an epoch as the best one; tell whether that worked."""
        origin = self._origin(epoch, scores)
        try:
            save_student(self._best_folder / WEIGHTS_FILE, self._setup.step.student, origin)
            write_card(self._best_folder, origin)
        except OSError as error:
            problem = f"epoch {epoch} is the best so far and could not be saved ({_reason(error)})"
            self._warn(f"{problem}; training goes on")
            self._lost_epoch = epoch
            return False
        self._lost_epoch = 0
        return True

    def _origin(self, epoch: int, scores: Mapping[str, float]) -> Origin:
        return Origin(
            config=self._setup.config,
            provenance=self._setup.provenance,
            epoch=epoch,
            step=self._progress.step,
            val=scores,
            n_pairs=len(self._setup.data.pairs),
            processes=self._processes.size,
        )

    def with_resume_command(self, problem: str) -> str:
        """Add to a problem how far the run is saved, and the command that goes on from there."""
        command = resume_command(self._setup.run_dir, self._processes.size)
        return f"{problem} (the run is kept up to step {self.saved_step:,}; go on with: {command})"

    def lost_at_the_end(self) -> str:
        """Return what the last epoch leaves that could not be written; empty if nothing."""
        if self.saved_step < self._progress.step:
            problem = "training is done, but its end could not be saved; make room"
            return self.with_resume_command(problem)
        if self._lost_epoch:
            lost = f"the student of epoch {self._lost_epoch}, the best one, could not be saved"
            saved_epoch = self._progress.best_epoch or "none"
            in_its_place = f"{self._best_folder} holds that of epoch {saved_epoch}"
            return f"training is done, but {lost}; {in_its_place}"
        return ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

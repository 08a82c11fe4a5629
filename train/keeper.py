"""What a run leaves on disk, also where that is full: checkpoints, the best student, the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cusa.train.commands import resume_command
from cusa.train.config import Config
from cusa.train.processes import Processes
from cusa.train.saving.model_card import write_card
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_dir import Checkpoints, MetricsLog, save_run
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import BEST_FOLDER, WEIGHTS_FILE, Origin, save_student
from cusa.train.saving.tensors import prefixed
from cusa.train.student import Student
from cusa.train.training_state import TrainingState


class RunKeeper:
    """Writes the files of a run, in the leading process; what cannot be written is survived.

    Args:
        run_dir: The run's directory.
        processes: This process and those that train with it.
        origin: Where weights come from, by epoch, step, and scores of the validation split.
        saved_step: Step of the newest checkpoint; 0 if there is none.

    Attributes:
        saved_step: As given, and of later checkpoints.
        warn: Told what could not be written.
    """

    def __init__(
        self,
        run_dir: Path,
        processes: Processes,
        origin: Callable[[int, int, Mapping[str, float]], Origin],
        saved_step: int,
    ) -> None:
        self.saved_step = saved_step
        self.warn: Callable[[str], None] = lambda text: None
        self._run_dir, self._processes, self._origin = run_dir, processes, origin
        self._checkpoints, self._log = Checkpoints(run_dir), MetricsLog(run_dir)
        self._saved_at = time.monotonic()
        self._lost_epoch = 0  # whose student is the best and could not be saved

    def begin(self, config: Config, provenance: Provenance, progress: Progress) -> None:
        """Write settings and provenance; remove what lies after where the run goes on from."""
        self._checkpoints.tidy(progress.step)
        self._log.trim(progress.step, progress.epoch)
        save_run(self._run_dir, config, provenance)

    def log(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl; one that cannot be written is written with the next."""
        if not self._processes.leads:
            return
        try:
            self._log.append(line)
        except OSError as error:
            problem = f"the log could not be written ({_reason(error)})"
            self.warn(f"{problem}; its lines are kept and tried again")

    def checkpoint_due(self, step: int, steps: int | None, minutes: float | None) -> bool:
        """Tell whether a checkpoint is due after a step.

        Args:
            step: Steps done.
            steps: Steps between checkpoints; ``None``: by time alone.
            minutes: Minutes between checkpoints; ``None``: by steps alone.
        """
        if step == self.saved_step:
            return False
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return is_late or (steps is not None and step % steps == 0)

    def save_checkpoint(
        self,
        state: TrainingState,
        progress: Progress,
        steps_per_epoch: int,
        scores: Mapping[str, float] | None = None,
        epoch_ended: bool = False,
    ) -> None:
        """Save all that the run goes on from; if that fails, the last one stays.

        All processes take part, with their random states.

        Args:
            state: What training changes.
            progress: How far the run is.
            steps_per_epoch: Optimizer steps per epoch.
            scores: Of the validation split, with these weights.
            epoch_ended: Save again where the epoch's last step is saved already.
        """
        random_states = self._processes.everyones(state.random_states())
        if self._processes.leads and (progress.step != self.saved_step or epoch_ended):
            tensors = state.tensors()
            for rank, states in enumerate(random_states):
                tensors |= prefixed(f"rng.{rank}", states)
            epoch = math.ceil(progress.step / steps_per_epoch)
            origin = self._origin(epoch, progress.step, scores or {})
            meta = {
                "origin": origin.plain(),
                "progress": progress.plain(),
                "scaler": state.scaler(),
            }
            try:
                self._checkpoints.save(progress.step, tensors, meta)
                self.saved_step = progress.step
            except OSError as error:
                checkpoint = f"the checkpoint of step {progress.step}"
                problem = f"{checkpoint} could not be written ({_reason(error)})"
                self.warn(f"{problem}; that of step {self.saved_step} stays")
        self.saved_step = self._processes.everyones(self.saved_step)[0]
        self._saved_at = time.monotonic()

    def save_best(
        self,
        student: Student,
        epoch: int,
        step: int,
        scores: Mapping[str, float],
    ) -> bool:
        """Save the student of an epoch as the best one; whether that worked."""
        folder, origin = self._run_dir / BEST_FOLDER, self._origin(epoch, step, scores)
        try:
            save_student(folder / WEIGHTS_FILE, student, origin)
            write_card(folder, origin)
        except OSError as error:
            problem = f"epoch {epoch} is the best so far and could not be saved ({_reason(error)})"
            self.warn(f"{problem}; training goes on")
            self._lost_epoch = epoch
            return False
        self._lost_epoch = 0
        return True

    def going_on(self, problem: str) -> str:
        """Add to a problem how far the run is kept, and the command that goes on from there."""
        command = resume_command(self._run_dir, self._processes.size)
        return f"{problem} (the run is kept up to step {self.saved_step:,}; go on with: {command})"

    def lost_at_the_end(self, progress: Progress) -> str:
        """Tell what the last epoch leaves that could not be written; empty if nothing."""
        if self.saved_step < progress.step:
            return self.going_on("training is done, but its end could not be saved; make room")
        if self._lost_epoch:
            lost = f"the student of epoch {self._lost_epoch}, the best one, could not be saved"
            saved_epoch = progress.best_epoch or "none"
            in_its_place = f"{self._run_dir / BEST_FOLDER} holds that of epoch {saved_epoch}"
            return f"training is done, but {lost}; {in_its_place}"
        return ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

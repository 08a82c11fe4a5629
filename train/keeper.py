"""What a run writes, even when the disk is full: checkpoints, the best student, the log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from cusa.data.errors import CusaError, WorkerError
from cusa.train.commands import resume_command
from cusa.train.reporter import Reporter
from cusa.train.run_setup import RunSetup
from cusa.train.saving.model_card import write_card
from cusa.train.saving.run_dir import Checkpoints, MetricsLog, save_run
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.sessions import SessionClock
from cusa.train.saving.student_folder import BEST_FOLDER, WEIGHTS_FILE, Origin, save_student
from cusa.train.saving.tensors import with_prefix
from cusa.train.training_state import TrainingState


class RunKeeper:
    """Writes the files of a run, in the leading process; training survives failed writes.

    Args:
        setup: What the run trains with.
        state: What training changes.
        progress: How far the run is; on construction, its newest checkpoint's progress.
        reporters: Told of each file that could not be written.

    Attributes:
        saved_step: Step of the newest checkpoint; 0 if there is none.
    """

    def __init__(
        self,
        setup: RunSetup,
        state: TrainingState,
        progress: Progress,
        reporters: Sequence[Reporter],
    ) -> None:
        self.saved_step = progress.step
        self._setup = setup
        self._state = state
        self._progress = progress
        self._reporters = reporters
        self._processes = setup.processes
        self._best_folder = setup.run_dir / BEST_FOLDER
        self._checkpoints = Checkpoints(setup.run_dir)
        self._log = MetricsLog(setup.run_dir)
        device = str(self._processes.device)
        self._clock = SessionClock(setup.run_dir, device, self._processes.size)
        self._saved_at = time.monotonic()
        self._lost_step = 0  # the step of a best student that could not be saved; 0: none

    def begin(self) -> None:
        """Write the run's first files, and remove what was written after its newest checkpoint."""
        setup = self._setup
        progress = self._progress
        is_new = progress.step == 0  # a resumed run keeps the configuration that it has
        if is_new:
            setup.towers.save(self._best_folder)
        # The steps after the newest whole checkpoint are taken again.
        self._checkpoints.tidy(progress.step)
        self._log.trim(progress)
        save_run(setup.run_dir, setup.config, setup.provenance)

    def log(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl; if that fails, it is written together with the next."""
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
        train = self._setup.config.train
        if step == self.saved_step:
            return False
        if train.checkpoint_steps and step % train.checkpoint_steps == 0:
            return True
        if train.checkpoint_minutes is None:
            return False
        seconds = time.monotonic() - self._saved_at
        return seconds >= 60 * train.checkpoint_minutes

    def save_checkpoint(
        self,
        scores: Mapping[str, float] | None = None,
        is_validated: bool = False,
    ) -> None:
        """Save everything that the run resumes from; if that fails, the last checkpoint stays.

        All processes must call: each adds its random states.

        Args:
            scores: The validation scores of these weights, if they were measured.
            is_validated: Whether to save even if there is a checkpoint of this step, to record the
                validation.
        """
        step = self._progress.step
        # Each process draws its own dropout masks.
        random_states = self._processes.everyones(self._state.random_states())
        is_new = is_validated or step != self.saved_step
        if is_new and self._processes.leads:
            self._write_checkpoint(scores or {}, random_states)
            self._save_session()
        # Only the leading process knows whether the write succeeded.
        saved_steps = self._processes.everyones(self.saved_step)
        self.saved_step = saved_steps[0]
        self._saved_at = time.monotonic()

    def _write_checkpoint(
        self,
        scores: Mapping[str, float],
        random_states: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Write a checkpoint with the random states of every process, by rank."""
        step = self._progress.step
        tensors = self._state.tensors()
        for rank, states in enumerate(random_states):
            tensors |= with_prefix(f"rng.{rank}", states)
        metadata = {
            "origin": self._origin(scores).to_dict(),
            "progress": asdict(self._progress),
            "scaler": self._state.scaler(),
        }
        try:
            self._checkpoints.save(step, tensors, metadata)
        except OSError as error:
            problem = f"the checkpoint of step {step} could not be written ({_reason(error)})"
            self._warn(f"{problem}; that of step {self.saved_step} stays")
            return
        self.saved_step = step

    def _save_session(self) -> None:
        try:
            self._clock.save()
        except OSError as error:
            self._warn(f"the time of training could not be written ({_reason(error)})")

    def save_best(self, scores: Mapping[str, float]) -> bool:
        """Save the student as the best one so far; return whether that succeeded."""
        origin = self._origin(scores)
        weights_file = self._best_folder / WEIGHTS_FILE
        try:
            save_student(weights_file, self._setup.step.student, origin)
            write_card(self._best_folder, origin)
        except OSError as error:
            moment = self._setup.length.moment(self._progress.step)
            problem = f"{moment} is the best so far and could not be saved ({_reason(error)})"
            self._warn(f"{problem}; training goes on")
            self._lost_step = self._progress.step
            return False
        self._lost_step = 0
        return True

    def _origin(self, scores: Mapping[str, float]) -> Origin:
        return Origin(
            config=self._setup.config,
            provenance=self._setup.provenance,
            epoch=self._setup.length.epochs(self._progress.step),
            step=self._progress.step,
            val=scores,
            n_pairs=len(self._setup.data.pairs),
            processes=self._processes.size,
        )

    def with_resume_command(self, problem: str) -> str:
        """Append to a message how far the run is saved, and the command that resumes it."""
        command = resume_command(self._setup.run_dir, self._processes.size)
        return f"{problem} (the run is kept up to step {self.saved_step:,}; go on with: {command})"

    def resumable(self, fault: CusaError | None) -> CusaError:
        """Return the error that ends a run which can be resumed, of the kind of its fault.

        Args:
            fault: Why the run cannot go on; ``None`` if another process has the fault.
        """
        error = fault or WorkerError("another process has no batch; its own message says why")
        return error.reworded(self.with_resume_command(str(error)))

    def lost_at_the_end(self) -> str:
        """Describe what could not be written by the end of training; empty if nothing was lost."""
        if self.saved_step < self._progress.step:
            problem = "training is done, but its end could not be saved; make room"
            return self.with_resume_command(problem)
        if not self._lost_step:
            return ""
        length = self._setup.length
        lost_moment = length.moment(self._lost_step)
        instead = f"{self._best_folder} holds no student"
        if self._progress.best_step:
            saved_moment = length.moment(self._progress.best_step)
            instead = f"{self._best_folder} holds that of {saved_moment}"
        lost = f"the student of {lost_moment}, the best one, could not be saved"
        return f"training is done, but {lost}; {instead}"

    def _warn(self, text: str) -> None:
        for reporter in self._reporters:
            reporter.warned(text)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

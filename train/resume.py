"""Resuming a run: which settings may change, and its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cusa.data.errors import RunError, SettingError, StoreError
from cusa.data.objects.folder import location_text
from cusa.train.config import Config, OptimConfig
from cusa.train.config_building import differing
from cusa.train.length import RunLength, Span, run_span, schedule_span
from cusa.train.processes import Processes
from cusa.train.saving.provenance import Beginning, Provenance
from cusa.train.saving.run_dir import Checkpoints, load_run
from cusa.train.saving.run_progress import Progress, ProgressInEpochs
from cusa.train.saving.tensors import without_prefix
from cusa.train.stores import Store
from cusa.train.training_state import TrainingState


@dataclass(frozen=True)
class BegunRun:
    """A run to be resumed.

    Attributes:
        config: Its settings, with the length that is wanted now.
        span_before: The length that it had until now.
        beginning: The trained student that it began with, if any.
    """

    config: Config
    span_before: Span
    beginning: Beginning | None

    def note(self, length: RunLength) -> str:
        """Describe what a changed length does to the schedule; empty if it is unchanged.

        Args:
            length: The steps of the run as it is wanted now.
        """
        span = run_span(self.config)
        before = self.span_before
        if span == before:
            return ""
        schedule = schedule_span(self.config)
        change = f"{span} instead of {before.beside(span)}"
        kept = f"the schedule stays that of {schedule.beside(span)}"
        n_scheduled = schedule.in_steps(length.steps_per_epoch)
        if length.total < n_scheduled:
            return f"{change}; {kept} and ends early"
        if length.total == n_scheduled:
            return f"{change}; {kept}"
        first_idle = schedule.amount + 1
        rate = f"the learning rate is {self.config.optim.min_lr:g}"
        return f"{change}; {kept}: from {schedule.unit} {first_idle:,} on {rate}"

    def change(
        self,
        progress: Progress,
        length: RunLength,
    ) -> dict[str, Any]:
        """Return the line of metrics.jsonl about a changed length; empty if it is unchanged.

        Args:
            progress: How far the run is.
            length: The steps of the run as it is wanted now.
        """
        note = self.note(length)
        if not note:
            return {}
        span = run_span(self.config)
        units = f"{span.unit}s"
        return {
            "kind": units,
            "step": progress.step,
            "epoch": length.epochs(progress.step),
            units: span.amount,
            "note": note,
        }

    def refuse_idle_steps(self, steps_per_epoch: int) -> None:
        """Refuse further steps whose learning rate would be 0.

        Args:
            steps_per_epoch: Optimizer steps per epoch.

        Raises:
            SettingError: If the run is made longer than its schedule, which ends at 0.
        """
        span = run_span(self.config)
        schedule = schedule_span(self.config)
        n_scheduled = schedule.in_steps(steps_per_epoch)
        n_before = self.span_before.in_steps(steps_per_epoch)
        is_longer = span.in_steps(steps_per_epoch) > max(n_scheduled, n_before)
        if self.config.optim.min_lr > 0 or not is_longer:
            return
        raise SettingError(
            f"--{span.unit}s {span.amount:,}: the schedule ends with {schedule.unit} "
            f"{schedule.amount:,} at optim.min_lr, which is 0: a longer run would change nothing; "
            "begin a new run with this one's student: --init",
            name=f"train.{span.unit}s",
        )

    def same_beginning(self, loaded: Beginning | None) -> Beginning | None:
        """Return the student that the run began with.

        Args:
            loaded: The student that was loaded now; ``None`` if the run has a checkpoint, which
                needs no other student.

        Raises:
            RunError: If the loaded student is not the one that the run began with.
        """
        if loaded is None or self.beginning is None:
            return self.beginning
        if loaded != replace(self.beginning, path=loaded.path):
            raise RunError(
                f"the student in {loaded.path} has changed since the run began with it; begin a "
                "new run",
                path=Path(loaded.path),
            )
        return self.beginning


def begun_run(
    run_dir: Path,
    config: Config,
    provenance: Provenance,
    store: Store,
) -> BegunRun:
    """Check that a run may be resumed: only its length may change what is computed.

    Args:
        run_dir: The run's directory.
        config: The settings that are wanted now, resolved.
        provenance: What these settings use of the store.
        store: The store.

    Raises:
        SettingError: If other settings that decide what is computed differ; the message lists them.
        StoreError: If the store differs in what the run uses.
        RunError: If the run's files are damaged.
    """
    before, provenance_before = load_run(run_dir)
    # The schedule stays as it was begun, whatever the length is now.
    resumed = _with_schedule_of(before, config)
    as_before = _with_length_of(before, config)
    fields = differing(before, as_before)
    if fields:
        name = fields[0].partition(" ")[0]
        raise SettingError(
            f"--resume: settings differ from those of {run_dir}: {'; '.join(fields)}", name=name
        )
    fields = provenance_before.differences(store, provenance)
    if fields:
        raise StoreError(
            f"{location_text(store.path)} is not the store of {run_dir} ({'; '.join(fields)}); "
            f"bring that back, or begin another run on this one, as with --init {run_dir}",
            path=store.path,
        )
    return BegunRun(
        config=resumed,
        span_before=run_span(before),
        beginning=provenance_before.beginning,
    )


def _with_length_of(before: Config, config: Config) -> Config:
    """Give ``config`` the run's own length, and its schedule unless ``config`` names another."""
    optim = config.optim
    if optim.schedule_epochs is None and optim.schedule_steps is None:
        optim = _with_schedule(optim, before.optim.schedule_epochs, before.optim.schedule_steps)
    train = replace(
        config.train,
        epochs=before.train.epochs,
        steps=before.train.steps,
    )
    return replace(config, optim=optim, train=train)


def _with_schedule_of(before: Config, config: Config) -> Config:
    """Give ``config`` the schedule that the run was begun with."""
    epochs, steps = before.optim.schedule_epochs, before.optim.schedule_steps
    has_own_length = epochs is not None or steps is not None
    if not has_own_length and run_span(config) != run_span(before):
        epochs, steps = before.train.epochs, before.train.steps
    return replace(config, optim=_with_schedule(config.optim, epochs, steps))


def _with_schedule(
    optim: OptimConfig,
    epochs: int | None,
    steps: int | None,
) -> OptimConfig:
    return replace(optim, schedule_epochs=epochs, schedule_steps=steps)


def restore_newest(
    run_dir: Path,
    state: TrainingState,
    processes: Processes,
    length: RunLength,
) -> tuple[Progress, list[str]]:
    """Restore the newest checkpoint that is whole, if there is any checkpoint.

    Args:
        run_dir: The run's directory.
        state: The state to restore.
        processes: The processes that train.
        length: The steps of the run.

    Returns:
        How far the run is, and a line for each newer checkpoint that is damaged.

    Raises:
        RunError: If there are checkpoints and none is whole, or the newest is of another student or
            of another number of processes.
        SettingError: If the run is beyond the end that is wanted now.
    """
    newest, problems = Checkpoints(run_dir).newest()
    if newest is None:
        return Progress.start(), problems
    _require_as_many(processes, newest.origin.processes, run_dir)
    # Each process draws its own dropout masks.
    random_states = without_prefix(f"rng.{processes.rank}", newest.tensors)
    try:
        state.restore(newest.tensors, random_states, newest.scaler)
    except RunError as error:
        raise RunError(f"{run_dir}: {error}", path=run_dir) from None
    progress = newest.progress
    if isinstance(progress, ProgressInEpochs):
        progress = progress.in_steps(length.steps_per_epoch)
    try:
        length.refuse_contradictory(progress)
    except RunError as error:
        message = f"the checkpoint of {run_dir} is damaged ({error})"
        raise RunError(message, path=run_dir) from None
    length.refuse_exceeded(progress)
    return progress, problems


def _require_as_many(processes: Processes, n_before: int, run_dir: Path) -> None:
    if n_before != processes.size:
        raise RunError(
            f"{run_dir} was begun by {n_before} processes and cannot go on with {processes.size}, "
            f"whose batches would differ; start {n_before} (torchrun --nproc-per-node)",
            path=run_dir,
        )

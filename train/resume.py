"""Resuming a run: which settings may change, and its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cusa.data.errors import RunError, SettingError, StoreError
from cusa.train.config import Config, differing
from cusa.train.processes import Processes
from cusa.train.saving.provenance import Beginning, Provenance
from cusa.train.saving.run_dir import Checkpoints, load_run
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.tensors import without_prefix
from cusa.train.stores import Store
from cusa.train.training_state import TrainingState


@dataclass(frozen=True)
class BegunRun:
    """A run to be resumed.

    Attributes:
        config: Its settings, with the number of epochs that is wanted now.
        epochs_before: The number of epochs that it had until now.
        beginning: The trained student that it began with, if any.
    """

    config: Config
    epochs_before: int
    beginning: Beginning | None

    @property
    def note(self) -> str:
        """Describe what a changed number of epochs does to the schedule; empty if unchanged."""
        epochs = self.config.train.epochs
        if epochs == self.epochs_before:
            return ""
        optim = self.config.optim
        schedule_epochs = optim.schedule_epochs or epochs
        change = f"{epochs:,} epochs instead of {self.epochs_before:,}"
        schedule = f"the schedule stays that of {schedule_epochs:,}"
        if epochs < schedule_epochs:
            return f"{change}; {schedule} and ends early"
        if epochs == schedule_epochs:
            return f"{change}; {schedule}"
        rate = f"from epoch {schedule_epochs + 1:,} on the learning rate is {optim.min_lr:g}"
        return f"{change}; {schedule}: {rate}"

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
    """Check that a run may be resumed: only its epochs may change what is computed.

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
    # The schedule stays as it was begun, whatever the number of epochs is now.
    resumed = _with_schedule_of(before, config)
    as_before = _with_epochs_of(before, config)
    fields = differing(before, as_before)
    if fields:
        name = fields[0].partition(" ")[0]
        raise SettingError(
            f"--resume: settings differ from those of {run_dir}: {'; '.join(fields)}", name=name
        )
    fields = provenance_before.differences(store, provenance)
    if fields:
        raise StoreError(
            f"{store.path} is not the store that {run_dir} began with: {'; '.join(fields)}",
            path=store.path,
        )
    return BegunRun(
        config=resumed,
        epochs_before=before.train.epochs,
        beginning=provenance_before.beginning,
    )


def _with_epochs_of(before: Config, config: Config) -> Config:
    """Give ``config`` the run's own epochs, and its schedule unless ``config`` names another."""
    schedule_epochs = config.optim.schedule_epochs or before.optim.schedule_epochs
    return replace(
        config,
        optim=replace(config.optim, schedule_epochs=schedule_epochs),
        train=replace(config.train, epochs=before.train.epochs),
    )


def _with_schedule_of(before: Config, config: Config) -> Config:
    """Give ``config`` the schedule that the run was begun with."""
    schedule_epochs = before.optim.schedule_epochs
    if schedule_epochs is None and config.train.epochs != before.train.epochs:
        schedule_epochs = before.train.epochs
    is_longer = False
    if schedule_epochs is not None:
        is_longer = config.train.epochs > max(schedule_epochs, before.train.epochs)
    if is_longer and config.optim.min_lr == 0:
        raise SettingError(
            f"--epochs {config.train.epochs:,}: the schedule ends with epoch {schedule_epochs:,} "
            "at optim.min_lr, which is 0: more epochs would change nothing; begin a new run with "
            "this one's student: --init",
            name="train.epochs",
        )
    optim = replace(config.optim, schedule_epochs=schedule_epochs)
    return replace(config, optim=optim)


def restore_newest(
    run_dir: Path,
    state: TrainingState,
    processes: Processes,
    steps_per_epoch: int,
) -> tuple[Progress, list[str]]:
    """Restore the newest checkpoint that is whole, if there is any checkpoint.

    Args:
        run_dir: The run's directory.
        state: The state to restore.
        processes: The processes that train.
        steps_per_epoch: Optimizer steps per epoch.

    Returns:
        How far the run is, and a line for each newer checkpoint that is damaged.

    Raises:
        RunError: If there are checkpoints and none is whole, or the newest is of another student or
            of another number of processes.
    """
    newest, problems = Checkpoints(run_dir).newest()
    if newest is None:
        return Progress.start(), problems
    n_before = newest.origin.processes
    if n_before != processes.size:
        raise RunError(
            f"{run_dir} was begun by {n_before} processes and cannot go on with {processes.size}, "
            f"whose batches would differ; start {n_before} (torchrun --nproc-per-node)",
            path=run_dir,
        )
    # Each process draws its own dropout masks.
    random_states = without_prefix(f"rng.{processes.rank}", newest.tensors)
    try:
        state.restore(newest.tensors, random_states, newest.scaler)
    except RunError as error:
        raise RunError(f"{run_dir}: {error}", path=run_dir) from None
    progress = newest.progress
    if not 0 <= progress.steps_into_epoch(steps_per_epoch) <= steps_per_epoch:
        raise RunError(
            f"the checkpoint of {run_dir} is damaged (step {progress.step:,} is not within epoch "
            f"{progress.epoch + 1:,})",
            path=run_dir,
        )
    return progress, problems


def refuse_fewer_epochs(
    epochs: int,
    progress: Progress,
    steps_per_epoch: int,
) -> None:
    """Refuse a number of epochs that the run has exceeded already.

    Args:
        epochs: The number of epochs that is wanted.
        progress: How far the run is.
        steps_per_epoch: Optimizer steps per epoch.

    Raises:
        SettingError: If the run has begun more epochs than that.
    """
    epochs_begun = progress.epochs_begun(steps_per_epoch)
    if epochs < epochs_begun:
        raise SettingError(
            f"--epochs {epochs:,}: {epochs_begun:,} epochs are begun already; pass as many or more",
            name="train.epochs",
        )

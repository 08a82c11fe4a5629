"""Going on with a run: what may differ from how it was begun, and its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cusa.data.errors import RunError, SettingError, StoreError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config, differing
from cusa.train.processes import Processes
from cusa.train.saving.provenance import Beginning, Provenance
from cusa.train.saving.run_dir import Checkpoints, load_run
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.tensors import without_prefix
from cusa.train.training_state import TrainingState


@dataclass(frozen=True)
class BegunRun:
    """A run that goes on.

    Attributes:
        config: Its settings, with as many epochs as are wanted now.
        epochs_before: As many as it had.
        beginning: The trained student that it began with, if it began with one.
    """

    config: Config
    epochs_before: int
    beginning: Beginning | None

    @property
    def note(self) -> str:
        """Tell what other epochs than before do to the schedule; empty if there are as many."""
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
            loaded: The student loaded in its place now; ``None`` if a checkpoint goes on from it
                already.

        Raises:
            RunError: If it has changed since.
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
    store: EmbeddingStore,
) -> BegunRun:
    """Refuse to go on with another run than the one that was begun; only its epochs may be others.

    Args:
        run_dir: The run's directory.
        config: The settings that are wanted now, resolved.
        provenance: What they would use of the store.
        store: The store.

    Raises:
        SettingError: If other settings differ that decide what is computed; names them.
        StoreError: If the store, or what is used of it, is another.
        RunError: If the run's files are damaged.
    """
    before, provenance_before = load_run(run_dir)
    # The schedule goes on as it was begun, whatever the number of epochs is now.
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
    """Give the settings wanted the run's own epochs, and its schedule unless another is named."""
    schedule_epochs = config.optim.schedule_epochs or before.optim.schedule_epochs
    return replace(
        config,
        optim=replace(config.optim, schedule_epochs=schedule_epochs),
        train=replace(config.train, epochs=before.train.epochs),
    )


def _with_schedule_of(before: Config, config: Config) -> Config:
    """Give the settings wanted the schedule that the run was begun with."""
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
    """Go back to the newest checkpoint that is whole, if there is one.

    Args:
        run_dir: The run's directory.
        state: What is restored.
        processes: Those that train.
        steps_per_epoch: Optimizer steps per epoch.

    Returns:
        How far the run is, and what is wrong with newer checkpoints.

    Raises:
        RunError: If no checkpoint is whole, or it is of another student or of other processes.
    """
    newest, problems = Checkpoints(run_dir).newest()
    if newest is None:
        return Progress.start(), problems
    n_before = newest.origin.processes
    if n_before != processes.size:
        raise RunError(
            f"{run_dir} was begun by {n_before} processes and cannot go on with {processes.size}: "
            "its batches would be others; start as many (torchrun --nproc-per-node)",
            path=run_dir,
        )
    # Each process has dropout masks of its own.
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
    """Refuse to end a run before where it is.

    Raises:
        SettingError: If more epochs are begun than it shall have.
    """
    epochs_begun = progress.epochs_begun(steps_per_epoch)
    if epochs < epochs_begun:
        raise SettingError(
            f"--epochs {epochs:,}: {epochs_begun:,} epochs are begun already; pass as many or more",
            name="train.epochs",
        )

"""Going on with a run: what may differ from how it was begun, and its newest checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from cusa.data.errors import RunError, SettingError, StoreError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config, differing
from cusa.train.processes import Processes
from cusa.train.saving.provenance import Beginning, Provenance
from cusa.train.saving.run_dir import Checkpoints, load_run
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import Origin
from cusa.train.saving.tensors import under
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
        epochs, optim = self.config.train.epochs, self.config.optim
        span = optim.schedule_epochs or epochs
        if epochs == self.epochs_before:
            return ""
        change = f"{epochs:,} epochs instead of {self.epochs_before:,}"
        change = f"{change}; the schedule stays that of {span:,}"
        if epochs > span:
            return f"{change}: from epoch {span + 1:,} on the learning rate is {optim.min_lr:g}"
        return f"{change} and ends early" if epochs < span else change

    def same_beginning(self, loaded: Beginning | None) -> Beginning | None:
        """Tell which student the run began with.

        Args:
            loaded: What is loaded now in its place; ``None`` if a checkpoint goes on from it already.

        Raises:
            RunError: If it has changed since.
        """
        before = self.beginning
        if (
            loaded is not None
            and before is not None
            and loaded != replace(before, path=loaded.path)
        ):
            change = f"the student in {loaded.path} has changed since the run began with it"
            raise RunError(f"{change}; begin a new run", path=Path(loaded.path))
        return before


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
    as_before, config = _epochs_of(before, config), _with_schedule_of(before, config)
    if fields := differing(before, as_before):
        name = fields[0].partition(" ")[0]
        raise SettingError(
            f"--resume: settings differ from those of {run_dir}: {'; '.join(fields)}",
            name=name,
        )
    if fields := provenance_before.differing(store, provenance):
        message = f"{store.path} is not the store that {run_dir} began with: {'; '.join(fields)}"
        raise StoreError(message, path=store.path)
    return BegunRun(config, before.train.epochs, provenance_before.beginning)


def _epochs_of(before: Config, config: Config) -> Config:
    """Give the settings wanted the run's own epochs, and its schedule unless another is named."""
    span = config.optim.schedule_epochs or before.optim.schedule_epochs
    optim, train = (
        replace(config.optim, schedule_epochs=span),
        replace(config.train, epochs=before.train.epochs),
    )
    return replace(config, optim=optim, train=train)


def _with_schedule_of(before: Config, config: Config) -> Config:
    """Give the settings wanted the schedule that the run was begun with.

    Raises:
        SettingError: If more epochs would have a learning rate of zero.
    """
    span = before.optim.schedule_epochs
    if config.train.epochs != before.train.epochs and span is None:
        span = before.train.epochs
    is_longer = span is not None and config.train.epochs > max(span, before.train.epochs)
    if is_longer and config.optim.min_lr == 0:
        reason = f"the schedule ends with epoch {span:,} at optim.min_lr, which is 0"
        remedy = "more epochs would change nothing; begin a new run with this one's student: --init"
        message = f"--epochs {config.train.epochs:,}: {reason}: {remedy}"
        raise SettingError(message, name="train.epochs")
    return replace(config, optim=replace(config.optim, schedule_epochs=span))


def restore_newest(
    run_dir: Path, state: TrainingState, processes: Processes, steps_per_epoch: int
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
        return Progress(), problems
    size = Origin.from_plain(newest.meta["origin"]).processes
    if size != processes.size:
        problem = f"{run_dir} was begun by {size} processes and cannot go on with {processes.size}"
        remedy = "its batches would be others; start as many (torchrun --nproc-per-node)"
        raise RunError(f"{problem}: {remedy}", path=run_dir)
    try:
        state.restore(
            newest.tensors,
            under(f"rng.{processes.rank}", newest.tensors),
            newest.meta["scaler"],
        )
    except RunError as error:
        raise RunError(f"{run_dir}: {error}", path=run_dir) from None
    progress = Progress.from_plain(newest.meta["progress"])
    if not 0 <= progress.step - progress.epoch * steps_per_epoch <= steps_per_epoch:
        at = f"step {progress.step:,} is not within epoch {progress.epoch + 1:,}"
        raise RunError(f"the checkpoint of {run_dir} is damaged ({at})", path=run_dir)
    return progress, problems


def refuse_fewer_epochs(epochs: int, progress: Progress, steps_per_epoch: int) -> None:
    """Refuse to end a run before where it is.

    Raises:
        SettingError: If more epochs are begun than it shall have.
    """
    begun_epochs = math.ceil(progress.step / steps_per_epoch)
    if epochs < begun_epochs:
        problem = f"--epochs {epochs:,}: {begun_epochs:,} epochs are begun already"
        message = f"{problem}; pass as many or more"
        raise SettingError(message, name="train.epochs")

"""How long a run, its schedule and its warm-up are, in epochs or steps, and when it validates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cusa.data.errors import RunError, SettingError
from cusa.train.config import Config
from cusa.train.saving.run_progress import Progress, epochs_done


class Span(NamedTuple):
    """A length of training as the settings give it.

    Attributes:
        amount: How many; of epochs, a fraction is possible.
        unit: Of what.
    """

    amount: int | float
    unit: Literal["epoch", "step"]

    def in_steps(self, steps_per_epoch: int) -> int:
        """Return the steps, with epochs of so many."""
        if self.unit == "step":
            return int(self.amount)
        return round(self.amount * steps_per_epoch)

    def in_epochs(self, steps_per_epoch: int) -> float:
        """Return the epochs, of so many steps, of which the last may be a fraction."""
        if self.unit == "epoch":
            return self.amount
        return self.amount / steps_per_epoch

    def beside(self, other: Span) -> str:
        """Write the length, without its unit if the other has the same."""
        if self.unit == other.unit:
            return f"{self.amount:,}"
        return str(self)

    def __str__(self) -> str:
        """Write the length as ``"1 epoch"`` or ``"5,000 steps"``."""
        amount = f"{self.amount:,}"
        if isinstance(self.amount, float):
            amount = f"{self.amount:g}"
        if self.amount == 1:
            return f"{amount} {self.unit}"
        return f"{amount} {self.unit}s"


def run_span(config: Config) -> Span:
    """Return the length of a run: ``train.steps`` or ``train.epochs``, of which it has one."""
    if config.train.epochs is not None:
        return Span(config.train.epochs, "epoch")
    assert config.train.steps is not None
    return Span(config.train.steps, "step")


def schedule_span(config: Config) -> Span:
    """Return the length of the schedule: its own if it has one, or else that of the run."""
    if config.optim.schedule_steps is not None:
        return Span(config.optim.schedule_steps, "step")
    if config.optim.schedule_epochs is not None:
        return Span(config.optim.schedule_epochs, "epoch")
    return run_span(config)


def warmup_span(config: Config) -> Span:
    """Return the length of the linear warm-up."""
    if config.optim.warmup_steps is not None:
        return Span(config.optim.warmup_steps, "step")
    return Span(config.optim.warmup_epochs, "epoch")


@dataclass(frozen=True)
class RunLength:
    """The steps of a run, and those that it validates after.

    Attributes:
        config: The run's settings.
        steps_per_epoch: Optimizer steps of one pass over the pairs.
    """

    config: Config
    steps_per_epoch: int

    @property
    def total(self) -> int:
        """Return the steps of the whole run."""
        return run_span(self.config).in_steps(self.steps_per_epoch)

    @property
    def between_validations(self) -> int:
        """Return the steps from one validation to the next; the last step has one, too."""
        return self.config.train.validate_every or self.steps_per_epoch

    def epochs(self, step: int) -> int | float:
        """Return the epochs that so many steps are: an int if they are whole."""
        return epochs_done(step, self.steps_per_epoch)

    def moment(self, step: int) -> str:
        """Name the end of a step: ``"epoch 3"``, or ``"step 5,000"`` where settings count steps."""
        epochs = self.epochs(step)
        if self.config.train.counts_steps or isinstance(epochs, float):
            return f"step {step:,}"
        return f"epoch {epochs:,}"

    def next_validation(self, progress: Progress) -> int:
        """Return the step that the next validation comes after: the current one if it is due."""
        first = max(progress.step, progress.validated_step + 1)
        n_validations = math.ceil(first / self.between_validations)
        multiple = n_validations * self.between_validations
        return min(multiple, self.total)

    def refuse_contradictory(self, progress: Progress) -> None:
        """Refuse the progress of a checkpoint that cannot be one of this run.

        Raises:
            RunError: If its steps contradict each other; the message does not name the run.
        """
        interval = self.between_validations
        next_multiple = (progress.validated_step // interval + 1) * interval
        is_in_order = progress.best_step <= progress.validated_step <= progress.step
        if not is_in_order or progress.step > next_multiple:
            raise RunError(
                f"step {progress.step:,} does not follow the validation after step "
                f"{progress.validated_step:,}"
            )

    def refuse_exceeded(self, progress: Progress) -> None:
        """Refuse a length that the run has exceeded already.

        Raises:
            SettingError: If more steps are done, or more epochs are begun.
        """
        if progress.step <= self.total:
            return
        span = run_span(self.config)
        exceeding = f"{progress.step:,} steps are done"
        if span.unit == "epoch":
            n_epochs = math.ceil(progress.step / self.steps_per_epoch)
            exceeding = f"{n_epochs:,} epochs are begun"
        raise SettingError(
            f"--{span.unit}s {span.amount:,}: {exceeding} already; pass as many or more",
            name=f"train.{span.unit}s",
        )


def refuse_endless_warmup(config: Config, steps_per_epoch: int | None = None) -> None:
    """Refuse a warm-up beyond the schedule's end, such as epochs that are meant to be steps.

    Args:
        config: The run's settings.
        steps_per_epoch: Steps of an epoch; ``None`` before they are known: epochs are not compared
            with steps then.

    Raises:
        SettingError: If the learning rate would not reach its peak.
    """
    warmup = warmup_span(config)
    schedule = schedule_span(config)
    setting = f"optim.warmup_{warmup.unit}s"
    if steps_per_epoch is not None:
        warmup = Span(warmup.in_steps(steps_per_epoch), "step")
        schedule = Span(schedule.in_steps(steps_per_epoch), "step")
    if warmup.unit == schedule.unit and warmup.amount > schedule.amount:
        raise SettingError(
            f"setting {setting} makes a warm-up of {warmup}, but the schedule has {schedule}, so "
            "the learning rate would not reach its peak; pass --warmup EPOCHS or --set "
            "optim.warmup_steps=STEPS with fewer",
            name=setting,
        )

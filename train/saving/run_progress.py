"""The progress of a run: steps, validations, and the best of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=0)]
# Passes over the pairs: whole at the end of an epoch, else a fraction.
Epochs = Count | Annotated[FiniteFloat, Field(ge=0)]


@dataclass
class Progress:
    """How far a run is.

    A validation is also counted where there is no validation split: there, it only keeps the
    student.

    Attributes:
        step: Steps done.
        validated_step: Step of the newest validation; 0 before the first.
        best_step: Step of the student in ``best/``: the one with the highest validation RSUM or,
            without a validation split, the newest; 0 before the first.
        best_rsum: The RSUM of that student; ``None`` if there is none.
        validations_since_best: Validations after that student's.
    """

    step: Count
    validated_step: Count
    best_step: Count
    best_rsum: FiniteFloat | None
    validations_since_best: Count

    @staticmethod
    def start() -> Progress:
        """Return the progress of a new run."""
        return Progress(0, 0, 0, None, 0)

    def validated(self, rsum: float | None, is_best: bool) -> None:
        """Count a validation of the student as it is now.

        Args:
            rsum: Its RSUM; ``None`` without a validation split.
            is_best: Whether it is the best so far, and saved.
        """
        self.validated_step = self.step
        self.validations_since_best += 1
        if is_best:
            self.best_step = self.step
            self.best_rsum = rsum
            self.validations_since_best = 0


@dataclass
class ProgressInEpochs:
    """The progress in checkpoints of earlier versions, which validated after each epoch.

    Attributes:
        epoch: Epochs done, validation included.
        step: Steps done.
        best_epoch: Epoch of the student in ``best/``; 0 before the first.
        best_rsum: The RSUM of that epoch; ``None`` if there is none.
    """

    epoch: Count
    step: Count
    best_epoch: Count
    best_rsum: FiniteFloat | None

    def in_steps(self, steps_per_epoch: int) -> Progress:
        """Convert it to what it is now."""
        return Progress(
            step=self.step,
            validated_step=self.epoch * steps_per_epoch,
            best_step=self.best_epoch * steps_per_epoch,
            best_rsum=self.best_rsum,
            validations_since_best=max(0, self.epoch - self.best_epoch),
        )


def epochs_done(step: int, steps_per_epoch: int) -> int | float:
    """Return the epochs that so many steps are: an int if they are whole."""
    if step % steps_per_epoch == 0:
        return step // steps_per_epoch
    return step / steps_per_epoch

"""The progress of a run: epochs, steps, the best epoch."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, FiniteFloat
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=0)]


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: Epochs done, validation included.
        step: Steps done.
        best_epoch: Epoch of the student in ``best/``: the one with the highest validation RSUM or,
            without a validation split, the last one; 0 before the first.
        best_rsum: The RSUM of that epoch; ``None`` if there is none.
    """

    epoch: Count
    step: Count
    best_epoch: Count
    best_rsum: FiniteFloat | None

    @staticmethod
    def start() -> Progress:
        """Return the progress of a new run."""
        return Progress(epoch=0, step=0, best_epoch=0, best_rsum=None)

    def steps_into_epoch(self, steps_per_epoch: int) -> int:
        """Return how many steps of the current epoch are done; all if only validation is left."""
        return self.step - self.epoch * steps_per_epoch

    def epochs_begun(self, steps_per_epoch: int) -> int:
        """Return how many epochs have been begun; a finished epoch counts, too."""
        return math.ceil(self.step / steps_per_epoch)

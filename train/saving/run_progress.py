"""How far a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat

from cusa.train.saving.plain_values import checked

_Count = Annotated[int, Field(ge=0)]


class _ProgressForm(BaseModel):
    epoch: _Count
    step: _Count
    best_epoch: _Count
    best_rsum: FiniteFloat | None


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: Epochs done, validation included.
        step: Steps done.
        best_epoch: Epoch of the student in ``best/``: that of the highest validation RSUM, or
            without a validation split the last one; 0 before the first.
        best_rsum: That RSUM; minus infinity where there is none.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_rsum: float = -math.inf

    def steps_into_epoch(self, steps_per_epoch: int) -> int:
        """Return how many steps of the next epoch are done; all, where validation is missing."""
        return self.step - self.epoch * steps_per_epoch

    def epochs_begun(self, steps_per_epoch: int) -> int:
        """Return how many epochs the steps done belong to."""
        return math.ceil(self.step / steps_per_epoch)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON has them."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best_epoch": self.best_epoch,
            "best_rsum": self.best_rsum if math.isfinite(self.best_rsum) else None,
        }

    @staticmethod
    def from_dict(content: Any) -> Progress:
        """Read the inverse of :meth:`to_dict`.

        Raises:
            RunError: If an entry is missing or of another type; says which.
        """
        form = checked(_ProgressForm, content, "progress")
        best_rsum = -math.inf if form.best_rsum is None else form.best_rsum
        return Progress(form.epoch, form.step, form.best_epoch, best_rsum)

"""The figures of a step, for the log and whatever else shows a run: losses, rates and speed."""

from __future__ import annotations

import time
from typing import Any

from cusa.train.loss.cusa_loss import LossTerms
from cusa.train.run_setup import RunSetup
from cusa.train.saving.run_progress import Progress


class StepFigures:
    """Measures the steps that are logged.

    Args:
        setup: What the run trains with.
        progress: How far the run is.
    """

    def __init__(self, setup: RunSetup, progress: Progress) -> None:
        self._setup = setup
        self._progress = progress
        self.start_clock()

    def start_clock(self) -> None:
        """Measure speed from now on: what came before, such as a validation, does not count."""
        self._start_seconds = time.perf_counter()
        self._start_step = self._progress.step

    def measure(self, terms: LossTerms, learning_rate: float) -> dict[str, Any]:
        """Return the figures of the step just taken, as a line of metrics.jsonl.

        Args:
            terms: Its loss. Reading a value waits for the GPU, so call this only for logged steps.
            learning_rate: Its learning rate.
        """
        samples_per_second = self._samples_per_second()
        setup = self._setup
        step = self._progress.step
        term_tensors = terms._asdict()
        term_values: dict[str, float] = {}
        for term in setup.config.loss.summed_terms:
            term_values[term] = term_tensors[term].item()
        return {
            "kind": "train",
            "step": step,
            "epoch": step / setup.data.steps_per_epoch,
            "loss": terms.total.item(),
            **term_values,
            **setup.step.loss.temperatures(),
            "lr": learning_rate,
            "samples_per_s": samples_per_second,
        }

    def _samples_per_second(self) -> float:
        """Return the pairs per second of all processes since the clock started; start it again."""
        n_steps = self._progress.step - self._start_step
        start_seconds = self._start_seconds
        self.start_clock()
        seconds = self._start_seconds - start_seconds
        pairs_per_step = self._setup.data.pairs_per_step * self._setup.processes.size
        return n_steps * pairs_per_step / seconds

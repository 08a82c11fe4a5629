"""The progress of ``cusa-train``."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress, TaskID

from cusa.screen.console import print_plain
from cusa.train.length import RunLength
from cusa.train.reporter import Outcome
from cusa.train.trainer import Trainer


class TrainProgress:
    """Shows a run in a progress bar.

    Args:
        progress_display: The progress display.
    """

    def __init__(self, progress_display: Progress) -> None:
        self._display = progress_display
        self._bar: TaskID | None = None
        self._length: RunLength | None = None
        # The names in the metrics of what a step's status shows.
        self._loss_terms: tuple[str, ...] = ()
        self._temperatures: list[str] = []
        self._status = ""

    def started(self, trainer: Trainer) -> None:
        """Add the bar, which starts at the steps that a resumed run has done."""
        setup = trainer.setup
        self._length = setup.length
        self._loss_terms = setup.config.loss.summed_terms
        temperatures = setup.step.loss.temperatures()
        # A line has no room for those of the soft labels.
        self._temperatures = [name for name in temperatures if not name.startswith("tau_soft")]
        first_step = trainer.progress.step
        self._bar = self._display.add_task(
            _current_epoch(setup.length, first_step),
            total=setup.length.total,
            completed=first_step,
            unit="steps",
            status="",
        )

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Show a step's losses, temperatures, learning rate and speed."""
        phrases = [f"{term} {metrics[term]:.4f}" for term in self._loss_terms]
        phrases += [f"{name} {metrics[name]:.3f}" for name in self._temperatures]
        phrases.append(f"lr {metrics['lr']:.1e}")
        phrases.append(f"{metrics['samples_per_s']:,.0f} samples/s")
        self._status = " ".join(phrases)
        self._show(metrics["step"])

    def validated(self, metrics: dict[str, Any]) -> None:
        """Print a validation's score."""
        assert self._length is not None
        unit, _, number = self._length.moment(metrics["step"]).partition(" ")
        log_line = (
            f"{unit} {number:>3}  val RSUM {metrics['rsum']:6.1f}  "
            f"i2t R@1 {metrics['i2t_r1']:.1f}, t2i R@1 {metrics['t2i_r1']:.1f}"
        )
        if metrics["best"]:
            log_line += "  best so far"
        self._print(log_line)
        self._show(metrics["step"])

    def warned(self, text: str) -> None:
        """Print a warning."""
        self._print(f"Warning: {text}")

    def ended(self, outcome: Outcome) -> None:
        """Leave the bar as it is."""

    def _print(self, log_line: str) -> None:
        print_plain(log_line, self._display.console)

    def _show(self, step: int) -> None:
        assert self._bar is not None
        assert self._length is not None
        self._display.update(
            self._bar,
            completed=step,
            description=_current_epoch(self._length, step),
            status=self._status,
        )


def _current_epoch(length: RunLength, step: int) -> str:
    """Name the epoch that a step is in, and the last one of a run that counts epochs."""
    epoch = step // length.steps_per_epoch + 1
    n_epochs = length.config.train.epochs
    if n_epochs is None:
        return f"epoch {epoch}"
    return f"epoch {min(n_epochs, epoch)}/{n_epochs}"

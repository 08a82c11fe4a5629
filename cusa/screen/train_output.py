"""The output of ``cusa-train``: a run's set-up, its progress and its outcome."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from cusa.screen.console import counted, print_plain
from cusa.train.length import run_span
from cusa.train.reporter import Outcome
from cusa.train.trainer import Trainer


class BarReporter:
    """Shows a run in a progress bar.

    Args:
        progress_bar: The progress display.
    """

    def __init__(self, progress_bar: Progress) -> None:
        self._bar = progress_bar
        self._task: TaskID | None = None
        self._losses = ""

    def started(self, trainer: Trainer) -> None:
        """Add the bar, which starts at the steps that a resumed run has done."""
        self._length = trainer.setup.length
        self._terms = trainer.setup.config.loss.terms
        self._taus = list(trainer.setup.step.loss.temperatures())
        step = trainer.progress.step
        self._epoch = self._current_epoch(step)
        self._task = self._bar.add_task(
            self._epoch,
            total=self._length.total,
            completed=step,
            unit="steps",
            status="",
        )

    def _current_epoch(self, step: int) -> str:
        """Name the epoch that a step is in, and the last one of a run that counts epochs."""
        epoch = step // self._length.steps_per_epoch + 1
        epochs = self._length.config.train.epochs
        if epochs is None:
            return f"epoch {epoch}"
        return f"epoch {min(epochs, epoch)}/{epochs}"

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Show a step's losses, temperatures, learning rate and speed."""
        words = [f"{term} {metrics[term]:.4f}" for term in self._terms]
        for tau in self._taus:
            if not tau.startswith("tau_soft"):
                words.append(f"{tau} {metrics[tau]:.3f}")
        words.append(f"lr {metrics['lr']:.1e} {metrics['samples_per_s']:,.0f} samples/s")
        self._losses = " ".join(words)
        self._epoch = self._current_epoch(metrics["step"])
        self._show(metrics["step"])

    def validated(self, metrics: dict[str, Any]) -> None:
        """Print a validation's score."""
        best = "  best so far" if metrics["best"] else ""
        kind, _, number = self._length.moment(metrics["step"]).partition(" ")
        self._print(
            f"{kind} {number:>3}  val RSUM {metrics['rsum']:6.1f}  "
            f"i2t R@1 {metrics['i2t_r1']:.1f}, t2i R@1 {metrics['t2i_r1']:.1f}{best}"
        )
        self._epoch = self._current_epoch(metrics["step"])
        self._show(metrics["step"])

    def warned(self, message: str) -> None:
        """Print a warning."""
        self._print(f"Warning: {message}")

    def ended(self, outcome: Outcome) -> None:
        """Leave the bar as it is."""

    def _print(self, line: str) -> None:
        print_plain(line, self._bar.console)

    def _show(self, step: int) -> None:
        assert self._task is not None
        self._bar.update(self._task, completed=step, description=self._epoch, status=self._losses)


def print_setup(screen: Console, trainer: Trainer) -> None:
    """Print the data, the student, the loss and the settings of a run."""
    lines = _data_lines(trainer) + _model_lines(trainer) + _run_lines(trainer)
    lines += [f"note      {note}" for note in trainer.notes]
    print_plain("\n".join(lines), screen)


def _data_lines(trainer: Trainer) -> list[str]:
    setup = trainer.setup
    pairs = setup.data.pairs
    split = setup.config.data.train_split
    lines = [
        f"data      {setup.store.dataset}: {len(pairs):,} pairs of split {split!r}, "
        f"{pairs.n_left_out:,} left out"
    ]
    validation = setup.provenance.validation
    if validation is not None:
        val_store = setup.config.data.val_embeddings
        lines.append(f"val       {validation.dataset}: split {validation.split!r} of {val_store}")
    roles = {"teacher": setup.provenance.teachers, "encoder": setup.provenance.encoders}
    for role, teachers in roles.items():
        for modality, teacher in teachers.items():
            model_id = teacher.settings.model_id
            lines.append(f"rows      {modality} {role}: {teacher.name} ({model_id})")
    return lines


def _model_lines(trainer: Trainer) -> list[str]:
    setup = trainer.setup
    parameters = list(setup.step.parameters())
    n_parameters = sum(parameter.numel() for parameter in parameters)
    n_trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)

    batch = setup.data.pairs_in_loss
    loss = setup.config.loss
    effective = loss.effective_weights(batch)
    terms = ", ".join(loss.terms)
    weights = ", ".join(f"{term} {weight:g}" for term, weight in effective.items())
    footprint = setup.footprint
    return [
        f"student   {setup.config.student.name}, {n_parameters:,} parameters, "
        f"{n_trained:,} trained",
        f"loss      {terms}; weights relative to InfoNCE at batch {batch}: {weights}",
        f"memory    about {_size(footprint.state + footprint.activations)} of each device: "
        f"{_size(footprint.state)} of weights, gradients and AdamW, "
        f"{_size(footprint.activations)} of activations",
    ]


def _run_lines(trainer: Trainer) -> list[str]:
    setup = trainer.setup
    config = setup.config.train
    processes = setup.processes
    device = processes.device.type
    if processes.size > 1:
        device += f", {processes.size} processes"
    lines = [
        f"run       {setup.run_dir}, {_length_of_run(trainer)}, "
        f"{device}, {config.precision}, seed {config.seed}"
    ]
    if trainer.progress.step:
        lines.append(f"resumed   after {_steps_done(trainer)}")
    return lines


def _length_of_run(trainer: Trainer) -> str:
    """Describe how long a run is, and how often it validates if not after each epoch."""
    length = trainer.setup.length
    epoch = counted(length.steps_per_epoch, "step")
    described = f"{run_span(length.config)} of {epoch}"
    if length.config.train.steps is not None:
        epochs = f"{length.epochs(length.total):.3g} epochs of {epoch}"
        described = f"{run_span(length.config)}, {epochs}"
    if length.config.train.validate_every is not None:
        described += f", validated every {counted(length.between_validations, 'step')}"
    return described


def _steps_done(trainer: Trainer) -> str:
    """Describe how far a run is, after its last complete epoch if it counts epochs."""
    length = trainer.setup.length
    progress = trainer.progress
    if length.config.train.counts_steps:
        progress_text = f"step {progress.step:,}"
        if trainer.finished:
            return f"{progress_text}: nothing is left to train"
        return progress_text
    epoch = f"epoch {length.epochs(progress.validated_step)}"
    if trainer.finished:
        return f"{epoch}, its last one: nothing is left to train"
    return f"{epoch}, step {progress.step - progress.validated_step:,} of the next"


def _size(n_bytes: int) -> str:
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.1f} MB"


def print_outcome(screen: Console, trainer: Trainer) -> None:
    """Print the best validation, and where the student is saved."""
    setup, progress = trainer.setup, trainer.progress
    best = setup.length.moment(progress.best_step)
    outcome = f"last {best}: no validation split"
    if setup.data.val_sources is not None:
        outcome = f"best {best}: val RSUM {progress.best_rsum:.1f}"
    if progress.step < setup.length.total:
        outcome += f", stopped early after {setup.length.moment(progress.step)}"
    lines = (outcome, f"run: {setup.run_dir}", f"student: {setup.run_dir / 'best'}")
    print_plain("\n".join(lines), screen)

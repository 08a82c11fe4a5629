"""The output of ``cusa-train``: a run's set-up, its progress and its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from cusa.cli.console import console, counted, print_plain
from cusa.data.errors import SettingError
from cusa.train.commands import evaluation_command
from cusa.train.reporter import Outcome
from cusa.train.sweep import figures, validated
from cusa.train.trainer import Trainer

if TYPE_CHECKING:
    from cusa.eval.evaluate import Evaluation
    from cusa.stages.train import TrainedRun


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
        self._epochs = trainer.setup.config.train.epochs
        self._terms = trainer.setup.config.loss.terms
        self._taus = list(trainer.setup.step.loss.temperatures())
        epoch = min(self._epochs, trainer.progress.epoch + 1)
        self._epoch = f"epoch {epoch}/{self._epochs}"
        self._task = self._bar.add_task(
            self._epoch,
            total=self._epochs * trainer.setup.data.steps_per_epoch,
            completed=trainer.progress.step,
            unit="steps",
            status="",
        )

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Show a step's losses, temperatures, learning rate and speed."""
        words = [f"{term} {metrics[term]:.4f}" for term in self._terms]
        for tau in self._taus:
            if not tau.startswith("tau_soft"):
                words.append(f"{tau} {metrics[tau]:.3f}")
        words.append(f"lr {metrics['lr']:.1e} {metrics['samples_per_s']:,.0f} samples/s")
        epoch = min(self._epochs, int(metrics["epoch"]) + 1)
        self._losses = " ".join(words)
        self._epoch = f"epoch {epoch}/{self._epochs}"
        self._show(metrics["step"])

    def validated(self, metrics: dict[str, Any]) -> None:
        """Print an epoch's validation score."""
        best = "  best so far" if metrics["best"] else ""
        self._print(
            f"epoch {metrics['epoch']:3}  val RSUM {metrics['rsum']:6.1f}  "
            f"i2t R@1 {metrics['i2t_r1']:.1f}, t2i R@1 {metrics['t2i_r1']:.1f}{best}"
        )
        self._epoch = f"epoch {metrics['epoch']}/{self._epochs}"
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
        f"run       {setup.run_dir}, {counted(config.epochs, 'epoch')} of "
        f"{counted(setup.data.steps_per_epoch, 'step')}, "
        f"{device}, {config.precision}, seed {config.seed}"
    ]
    progress = trainer.progress
    if progress.step:
        lines.append(f"resumed   after epoch {progress.epoch}, {_step_within_epoch(trainer)}")
    return lines


def _step_within_epoch(trainer: Trainer) -> str:
    """Describe how far a run is after its last complete epoch."""
    if trainer.finished:
        return "its last one: nothing is left to train"
    progress = trainer.progress
    step = progress.step - progress.epoch * trainer.setup.data.steps_per_epoch
    return f"step {step:,} of the next"


def _size(n_bytes: int) -> str:
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.1f} MB"


def print_outcome(screen: Console, trainer: Trainer) -> None:
    """Print the best epoch, and where the student is saved."""
    setup, progress = trainer.setup, trainer.progress
    outcome = f"last epoch {progress.best_epoch}: no validation split"
    if setup.data.val_sources is not None:
        outcome = f"best epoch {progress.best_epoch}: val RSUM {progress.best_rsum:.1f}"
    if progress.epoch < setup.config.train.epochs:
        outcome += f", stopped early after epoch {progress.epoch}"
    lines = (outcome, f"run: {setup.run_dir}", f"student: {setup.run_dir / 'best'}")
    print_plain("\n".join(lines), screen)


def print_next(runs: Sequence[TrainedRun], evaluation: Evaluation | None) -> None:
    """Print the figures of runs or, if they were not evaluated, the command that does it."""
    if evaluation is not None:
        from cusa.cli.evaluate_output import print_evaluation

        print_evaluation(evaluation)
        return
    run_dirs = [run.run_dir for run in runs]
    try:
        print_plain(f"next: {evaluation_command(run_dirs)}")
    except SettingError:
        # Trained on a set of tars: no store is known, so that there is no command to paste.
        print_plain(f"next: cusa-eval --run {run_dirs[0]} --embeddings, and a store of other pairs")


def print_sweep(folder: Path, rows: Sequence[Any]) -> None:
    """Print the table of a sweep, and the files that it was written to.

    Args:
        folder: The sweep's folder.
        rows: The rows from :func:`cusa.train.sweep.summarize`.
    """
    if validated(rows):
        recalls = ("i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10")
        table = Table(*rows[0].values, "runs", *recalls, "RSUM", "RSUM, last epoch")
        table.title = "validation split, best epoch: mean ± standard deviation"
        for row in rows:
            table.add_row(*row.values.values(), str(row.n), *figures(row))
        console().print(table)
    else:
        print_plain("no validation split: measure the runs with cusa-eval")
    print_plain(f"table: {folder / 'sweep.md'}, {folder / 'sweep.json'}")

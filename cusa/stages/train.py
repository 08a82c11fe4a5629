"""Stage two as a function: a student is trained on an embedding store."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from cusa.data.errors import Stopped
from cusa.stages.arguments import checked, with_options
from cusa.stages.machine import default_workers, pick_device
from cusa.stages.options import TrainArguments, TrainOptions
from cusa.stages.signals import stop_signals

if TYPE_CHECKING:
    from cusa.eval.evaluate import Evaluation
    from cusa.train.command_settings import Given
    from cusa.train.config import Config
    from cusa.train.processes import Processes
    from cusa.train.reporter import Outcome, Reporter
    from cusa.train.trainer import Trainer

# Options that are no settings of the run.
_NO_SETTINGS = ("preset", "config", "settings")


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained to its end; as a path, it is the run's directory.

    Attributes:
        run_dir: The run's directory.
        epoch: Epochs that its best student was trained for, a fraction if it is of a step within
            one; without a validation split, those of the last student.
        step: The step of that student.
        val: Recalls of the validation split by name, in percent, with that student; empty without a
            validation split.
        notes: What the user should know about the data, and about how the run was resumed.
        leads: Whether this process wrote the run; of several, only one does.
        evaluation: With ``report``, the evaluation of the run.
    """

    run_dir: Path
    epoch: int | float
    step: int
    val: Mapping[str, float]
    notes: tuple[str, ...] = ()
    leads: bool = True
    evaluation: Evaluation | None = None

    def __fspath__(self) -> str:
        """Return the run's directory, for whatever takes a path."""
        return str(self.run_dir)


@with_options(TrainOptions)
def train(
    embeddings: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
    **options: Unpack[TrainOptions],
) -> TrainedRun:
    """Train a student with the CUSA losses; the teachers' rows come from a store or a set of tars.

    Ctrl-C writes a checkpoint and raises ``KeyboardInterrupt``; ``run_dir`` with ``resume=True``
    goes on.

    Args:
        embeddings: The embedding store, from :func:`cusa.precompute`, or the set of tars, from
            :func:`cusa.precompute_tars`; or its path or URL. With ``resume``, by default the run's
            own.
        progress: Whether to show set-up, progress and outcome, as ``cusa-train`` does. Without it,
            problems that training survives are issued as warnings.
        **options: The other flags of ``cusa-train``.

    Returns:
        The run, with the figures of its best student.

    Raises:
        CusaError: If an option, the store or the student cannot be used, or training fails; the
            message names options as flags: ``--run-dir`` is ``run_dir``.
        KeyboardInterrupt: On Ctrl-C; the message says how far the run got.
    """
    given = checked(TrainArguments, {**options, "embeddings": embeddings})
    run_dir = given.pop("run_dir", None)
    resume = given.pop("resume", False)
    report = given.pop("report", False)
    with stop_signals() as check_stop:
        from cusa.train.command_settings import chosen_settings, default_run_dir
        from cusa.train.commands import evaluated_store
        from cusa.train.processes import Processes

        config = chosen_settings(given_settings(given), run_dir, resume)
        if report:
            # Refuses a run that could not be measured at its end.
            evaluated_store(config)
        with closing(Processes(pick_device(config.train.device))) as processes:
            # All processes use the directory of the first, as the default name contains the time.
            run_dir = processes.everyones(run_dir or default_run_dir(config))[0]
            run = train_run(config, processes, run_dir, resume, progress, check_stop)
    evaluation = evaluate_runs([run], config, progress) if report else None
    return replace(run, evaluation=evaluation)


def given_settings(options: Mapping[str, Any]) -> Given:
    """Sort checked options as :mod:`cusa.train.command_settings` takes them."""
    from cusa.train.command_settings import Given, nested_settings

    flags = dict(options)
    embeddings = flags.pop("embeddings", None)
    preset, config_file, settings = (flags.pop(name, None) for name in _NO_SETTINGS)
    return Given(embeddings, preset, config_file, nested_settings(settings or {}), flags)


def train_run(
    config: Config,
    processes: Processes,
    run_dir: Path,
    resume: bool,
    progress: bool,
    check_stop: Callable[[], None],
    in_sweep: bool = False,
) -> TrainedRun:
    """Train a run to its end, and show it if ``progress`` is set.

    Raises:
        Stopped: If a signal arrived; the run can be resumed.
    """
    from cusa.eval.metrics.validation import validation_scores
    from cusa.screen.console import console
    from cusa.screen.progress import progress_display
    from cusa.screen.train_output import print_outcome, print_setup
    from cusa.screen.train_progress import TrainProgress
    from cusa.train.trainer import Trainer

    is_quiet = not (progress and processes.leads)
    progress_bar = progress_display(is_quiet)
    screen = console(is_quiet)
    # If one process cannot set up, the others stop, too, instead of waiting for it.
    with processes.all_or_none():
        shown_by = TrainProgress(progress_bar) if progress else _WarningReporter()
        reporters = _reporters(shown_by, config, processes)
        workers = _workers(config)
        trainer = Trainer(config, processes, workers, run_dir, resume, validation_scores)
    print_setup(screen, trainer)
    with closing(trainer.setup.data), progress_bar:
        try:
            trainer.fit(reporters, check_stop)
        except Stopped as stopped:
            raise stopped.with_progress(_how_to_go_on(trainer, in_sweep)) from None
    print_outcome(screen, trainer)
    return _trained_run(trainer)


class _WarningReporter:
    """Shows nothing of a run but its warnings, as Python's own."""

    def started(self, trainer: Trainer) -> None:
        """Show nothing."""

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Show nothing."""

    def validated(self, metrics: dict[str, Any]) -> None:
        """Show nothing."""

    def warned(self, text: str) -> None:
        """Issue a warning."""
        warnings.warn(text, stacklevel=2)

    def ended(self, outcome: Outcome) -> None:
        """Show nothing."""


def _reporters(shown_by: Reporter, config: Config, processes: Processes) -> list[Reporter]:
    if not config.train.report_to or not processes.leads:
        return [shown_by]
    from cusa.train.trackers.reporter import TrackersReporter

    return [shown_by, TrackersReporter(config.train.report_to, shown_by.warned)]


def _workers(config: Config) -> int:
    """Return how many processes read batches for each training process."""
    if config.train.workers is not None:
        return config.train.workers
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return default_workers(config.student.is_adapter, processes_here)


def _how_to_go_on(trainer: Trainer, in_sweep: bool) -> str:
    from cusa.train.commands import resume_command

    saved_step = trainer.keeper.saved_step
    progress = f"step {saved_step:,} is kept" if saved_step else "nothing is kept yet"
    if in_sweep:
        return f"{progress}; go on with the same --sweep command"
    command = resume_command(trainer.setup.run_dir, trainer.setup.processes.size)
    return f"{progress}; go on with: {command}"


def _trained_run(trainer: Trainer) -> TrainedRun:
    """Describe a finished run; every process learns it from the one that wrote it."""
    from cusa.train.saving.student_folder import load_origin

    processes = trainer.setup.processes
    run_dir = trainer.setup.run_dir
    figures = None
    if processes.leads:
        origin = load_origin(run_dir)
        figures = (origin.epoch, origin.step, dict(origin.val))
    epoch, step, val = processes.everyones(figures)[0]
    return TrainedRun(run_dir, epoch, step, val, tuple(trainer.notes), processes.leads)


def evaluate_runs(runs: Sequence[TrainedRun], config: Config, progress: bool) -> Evaluation | None:
    """Evaluate finished runs, in the process that leads, as the printed command would."""
    if not runs[0].leads:
        return None
    from cusa.stages.evaluate import evaluate
    from cusa.train.commands import split_to_measure

    measured = split_to_measure(runs[0].run_dir)
    return evaluate(
        runs,
        split=measured.split,
        allow_partial=measured.allow_partial,
        device=config.train.device,
        progress=progress,
    )

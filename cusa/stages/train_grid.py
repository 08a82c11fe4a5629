"""A grid of runs as a function: stage two for every combination of some settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from cusa.stages.arguments import checked
from cusa.stages.machine import pick_device
from cusa.stages.options import TrainArguments, TrainOptions
from cusa.stages.signals import stop_signals
from cusa.stages.train import TrainedRun, evaluate_runs, given_settings, train_run

if TYPE_CHECKING:
    from cusa.eval.evaluate import Evaluation
    from cusa.train.config import Config
    from cusa.train.processes import Processes
    from cusa.train.sweep import Row


@dataclass(frozen=True)
class TrainedGrid:
    """The finished runs of a grid.

    Attributes:
        folder: Their folder, with ``sweep.md`` and ``sweep.json``.
        runs: The runs.
        rows: The summary over seeds; empty in processes that do not lead.
        evaluation: With ``report``, the evaluation of all runs.
    """

    folder: Path
    runs: Sequence[TrainedRun]
    rows: Sequence[Row]
    evaluation: Evaluation | None = None


def train_grid(
    axes: Sequence[str],
    embeddings: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
    **options: Unpack[TrainOptions],
) -> TrainedGrid:
    """Train or resume the run of every combination of settings, and summarise them.

    Args:
        axes: Axes of the grid, each ``NAME=VALUE,VALUE,...``.
        embeddings: As :func:`train` takes it.
        progress: As :func:`train` takes it.
        **options: As :func:`train` takes them; ``run_dir`` is the folder of the grid.

    Raises:
        CusaError: As :func:`train` raises it.
    """
    given = checked(TrainArguments, {**options, "embeddings": embeddings})
    folder = given.pop("run_dir", None)
    report = given.pop("report", False)
    given.pop("resume", None)  # by itself
    with stop_signals() as check_stop:
        from cusa.train.command_settings import default_sweep_dir, flag_settings, new_settings
        from cusa.train.config_building import merge
        from cusa.train.processes import Processes
        from cusa.train.sweep import parse_grid, summarize

        cells = parse_grid(axes)
        settings = given_settings(given)
        flags = flag_settings(settings.flags)
        configs = [new_settings(settings, merge(flags, cell.settings)) for cell in cells]
        folder = folder or default_sweep_dir(configs)
        run_dirs = [folder / cell.name for cell in cells]
        with closing(Processes(pick_device(configs[0].train.device))) as processes:
            runs = _train_all(configs, processes, run_dirs, progress, check_stop)
            leads = processes.leads
    rows = summarize(folder, cells) if leads else ()
    evaluation = evaluate_runs(runs, configs[0], progress) if report else None
    return TrainedGrid(folder, runs, rows, evaluation)


def _train_all(
    configs: Sequence[Config],
    processes: Processes,
    run_dirs: Sequence[Path],
    progress: bool,
    check_stop: Callable[[], None],
) -> list[TrainedRun]:
    """Train or resume the runs of a grid, one after the other."""
    from cusa.screen.console import console, print_plain

    screen = console(quiet=not (progress and processes.leads))
    runs = []
    for number, (config, run_dir) in enumerate(zip(configs, run_dirs, strict=True), 1):
        print_plain(f"\nrun {number} of {len(configs)}: {run_dir.name}", screen)
        # Decided by the first process, before it makes the folder.
        resume = processes.everyones(run_dir.exists())[0]
        run = train_run(config, processes, run_dir, resume, progress, check_stop, in_sweep=True)
        runs.append(run)
    return runs

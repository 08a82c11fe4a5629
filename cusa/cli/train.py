"""``cusa-train``: train a student on an embedding store."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import (
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    choice_option,
    command,
    console,
    print_plain,
    quiet_libraries,
)
from cusa.data.errors import SettingError, Stopped
from cusa.stages.machine import default_workers, pick_device
from cusa.stages.signals import stop_signals

if TYPE_CHECKING:
    from cusa.cli.train_output import BarReporter
    from cusa.train.command_settings import Given
    from cusa.train.config import Config
    from cusa.train.processes import Processes
    from cusa.train.reporter import Reporter
    from cusa.train.trainer import Trainer


@command()
@click.option("--embeddings", type=PATH, help="The embedding store of cusa-precompute.")
@click.option("--student", help="adapter, or a Hugging Face dual encoder by name or folder.")
@click.option(
    "--init",
    metavar="PATH",
    help="Start from the weights and heads of a run, its best/, or an export --to hf, with a new "
    "optimizer and schedule.",
)
@click.option(
    "--image-encoder", help="Adapter: the store's image teacher whose rows are its input."
)
@click.option("--text-encoder", help="Adapter: the store's text teacher whose rows are its input.")
@click.option("--image-teacher", help="The store's image teacher that gives the soft labels.")
@click.option("--text-teacher", help="The store's text teacher that gives the soft labels.")
@click.option("--image-root", help="Folder of the images, if not the store's own.")
@click.option(
    "--loss", type=click.Choice(["contrastive", "csa", "usa", "cusa"]), help="Terms to sum."
)
@click.option("--preset", help="Named settings.  [default: by data set and student]")
@click.option("--config", "config_file", type=PATH, help="YAML file of settings.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting, e.g. loss.alpha=0.2; all of them: cusa-train settings.",
)
@click.option(
    "--epochs",
    type=POSITIVE,
    help="Passes over the captions; with --resume, more of them under the run's schedule.",
)
@click.option("--batch-size", type=POSITIVE, help="Pairs per step on each GPU.")
@click.option(
    "--accumulate",
    type=POSITIVE,
    help="Batches per step, by gradient accumulation; the loss is over all of them together.",
)
@click.option(
    "--micro-batch",
    type=POSITIVE,
    help="Pairs to encode at a time (each is encoded twice), for batches that do not fit into "
    "memory; the loss is still over the whole batch.",
)
@click.option(
    "--gather/--no-gather",
    default=None,
    show_default=False,
    help="With several GPUs: one loss over all batches or, as published, one loss per GPU.",
)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--workers", type=NOT_NEGATIVE, help="Processes that read batches.")
@click.option("--seed", type=int)
@click.option(
    "--patience", type=POSITIVE, help="Stop after this many epochs without a better val RSUM."
)
@click.option(
    "--checkpoint-steps",
    type=POSITIVE,
    help="Steps between checkpoints for --resume.",
)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(0),
    help="Minutes between such checkpoints.  [default: 10]",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    default=None,
    show_default=False,
    help="Write TensorBoard files, too.",
)
@click.option(
    "--run-dir",
    type=PATH,
    help="[default: runs/DATASET-STUDENT-LOSS-seedN-TIME; of a sweep, runs/DATASET-sweep-HASH]",
)
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint of --run-dir.")
@click.option(
    "--sweep",
    metavar="NAME=A,B,... [NAME=...]",
    help="Train every combination, one after the other: --sweep loss=csa,cusa seed=0,1,2. Run it "
    "again to resume.",
)
@click.argument("axes", nargs=-1, metavar="")
@click.version_option(package_name="cusa")
def main(
    embeddings: Path | None,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    run_dir: Path | None,
    resume: bool,
    sweep: str | None,
    axes: tuple[str, ...],
    **flags: Any,
) -> None:
    """Train a student with the CUSA losses; the teachers' rows are read from a store.

    Settings come from the preset, then --config, then --set, then the other options. With several
    GPUs: torchrun --nproc-per-node N -m cusa.train ... (the same options).
    """
    _check_sweep(sweep, axes, resume)
    quiet_libraries()
    # torch is imported within, so that a signal meanwhile also stops the run with one line.
    with stop_signals() as check_stop:
        from cusa.train.command_settings import Given

        given = Given(embeddings, preset, config_file, settings, flags)
        if sweep:
            _train_sweep((sweep, *axes), given, run_dir, check_stop)
        else:
            _train_one(given, run_dir, resume, check_stop)


@command()
@click.option("--run", required=True, type=PATH, help="Run directory.")
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["hf", "sentence-transformers"]),
    help="hf: a folder with a backbone for transformers, and the heads. sentence-transformers: a "
    "folder for SentenceTransformer, whose encode takes images and texts.",
)
@choice_option(
    "--head",
    "cross",
    "uni",
    help="sentence-transformers: the head to embed with; uni to compare within a modality.",
)
@choice_option("--checkpoint", "best", "last")
@click.option("--out", type=PATH, help="New folder.  [default: RUN/export-KIND]")
def export(run: Path, kind: Any, head: Any, checkpoint: Any, out: Path | None) -> None:
    """Write a trained student, with a model card, for transformers or sentence-transformers."""
    quiet_libraries()
    from cusa.train.saving.export import export as export_run

    print_plain(f"exported: {export_run(run, kind, out, head, checkpoint)}")


@command("settings")
def list_settings() -> None:
    """List all settings for --set and --config, with defaults, legal values and meanings."""
    from cusa.train.settings_table import setting_rows

    for row in setting_rows():
        print_plain(f"{row.name}: {row.default}\n    {row.description}\n    Takes {row.legal}.")


main.subcommands |= {"export": export, "settings": list_settings}


def _check_sweep(sweep: str | None, axes: tuple[str, ...], resume: bool) -> None:
    if axes and not sweep:
        raise SettingError(f"unknown argument {axes[0]!r}; see cusa-train --help", name=axes[0])
    if sweep and resume:
        raise SettingError(
            "--sweep resumes by itself when it is run again; leave out --resume", name="--resume"
        )


def _train_one(
    given: Given, run_dir: Path | None, resume: bool, check_stop: Callable[[], None]
) -> None:
    from cusa.cli.train_output import print_next
    from cusa.train.command_settings import chosen_settings, default_run_dir
    from cusa.train.processes import Processes

    config = chosen_settings(given, run_dir, resume)
    with closing(Processes(pick_device(config.train.device))) as processes:
        # All processes use the directory of the first, as the default name contains the time.
        run_dir = processes.everyones(run_dir or default_run_dir(config))[0]
        trainer = _train(config, processes, run_dir, resume, check_stop)
        if processes.leads:
            print_next([run_dir], trainer)


def _train_sweep(
    axes: tuple[str, ...], given: Given, folder: Path | None, check_stop: Callable[[], None]
) -> None:
    """Train or resume the run of every combination, and summarise them."""
    from cusa.cli.train_output import print_next, print_sweep
    from cusa.train.command_settings import default_sweep_dir, flag_settings, new_settings
    from cusa.train.config import merge
    from cusa.train.processes import Processes
    from cusa.train.sweep import parse_grid, summarize

    cells = parse_grid(axes)
    flags = flag_settings(given.flags)
    configs = [new_settings(given, merge(flags, cell.settings)) for cell in cells]
    folder = folder or default_sweep_dir(configs)
    with closing(Processes(pick_device(configs[0].train.device))) as processes:
        for number, (cell, config) in enumerate(zip(cells, configs, strict=True), 1):
            if processes.leads:
                print_plain(f"\nrun {number} of {len(cells)}: {cell.name}")
            run_dir = folder / cell.name
            # Decided by the first process, before it makes the folder.
            resume = processes.everyones(run_dir.exists())[0]
            trainer = _train(config, processes, run_dir, resume, check_stop, in_sweep=True)
        if not processes.leads:
            return
    print_sweep(folder, summarize(folder, cells))
    print_next([folder / cell.name for cell in cells], trainer)


def _train(
    config: Config,
    processes: Processes,
    run_dir: Path,
    resume: bool,
    check_stop: Callable[[], None],
    in_sweep: bool = False,
) -> Trainer:
    """Train a run to its end, and show its progress.

    Raises:
        Stopped: If a signal arrived; the run can be resumed.
    """
    from cusa.cli.progress import progress
    from cusa.cli.train_output import BarReporter, print_outcome, print_setup
    from cusa.eval.metrics.validation import validation_scores
    from cusa.train.trainer import Trainer

    progress_bar = progress(quiet=not processes.leads)
    # If one process cannot set up, the others stop, too, instead of waiting for it.
    with processes.all_or_none():
        reporters = _reporters(BarReporter(progress_bar), config, processes)
        workers = config.train.workers
        if workers is None:
            processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = default_workers(config.student.name == "adapter", processes_here)
        trainer = Trainer(config, processes, workers, run_dir, resume, validation_scores)
    screen = console(quiet=not processes.leads)
    print_setup(screen, trainer)
    with progress_bar:
        try:
            trainer.fit(reporters, check_stop)
        except Stopped as stopped:
            raise stopped.with_progress(_how_to_go_on(trainer, in_sweep)) from None
    print_outcome(screen, trainer)
    return trainer


def _reporters(bar_reporter: BarReporter, config: Config, processes: Processes) -> list[Reporter]:
    if not config.train.tensorboard or not processes.leads:
        return [bar_reporter]
    from cusa.train.tensorboard import TensorBoardReporter

    return [bar_reporter, TensorBoardReporter(bar_reporter.warned)]


def _how_to_go_on(trainer: Trainer, in_sweep: bool) -> str:
    from cusa.train.commands import resume_command

    saved_step = trainer.keeper.saved_step
    progress = f"step {saved_step:,} is kept" if saved_step else "nothing is kept yet"
    if in_sweep:
        return f"{progress}; go on with the same --sweep command"
    command = resume_command(trainer.setup.run_dir, trainer.setup.processes.size)
    return f"{progress}; go on with: {command}"

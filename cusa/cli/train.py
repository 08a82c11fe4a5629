"""``cusa-train``: train a student on an embedding store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import Besides, Stopped, one_line_errors

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from cusa.train.command_settings import Given
    from cusa.train.config import Config
    from cusa.train.processes import Processes
    from cusa.train.reporter import Reporter
    from cusa.train.trainer import Trainer


@click.command(
    cls=Besides, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.option(
    "--embeddings", type=click.Path(path_type=Path), help="The embedding store of cusa-precompute."
)
@click.option("--student", help="adapter, or a Hugging Face dual encoder by name or folder.")
@click.option("--init", metavar="PATH",
              help="Begin with the student of a run, its best/, or an export --to hf: weights and "
              "heads; optimizer and schedule are new.")  # fmt: skip
@click.option(
    "--image-encoder", help="Adapter: the store's image teacher whose rows are its input."
)
@click.option("--text-encoder", help="Adapter: the store's text teacher whose rows are its input.")
@click.option("--image-teacher", help="The store's image teacher that gives the soft labels.")
@click.option("--text-teacher", help="The store's text teacher that gives the soft labels.")
@click.option("--image-root", help="Folder of the images, if not the store's own.")
@click.option(
    "--loss",
    type=click.Choice(["contrastive", "csa", "usa", "cusa"]),
    help="Which terms are summed.",
)
@click.option("--preset", help="Settings by name.  [default: by data set and student]")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Settings from a YAML file."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting, e.g. loss.alpha=0.2.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Passes over the captions; with --resume, more of them under the schedule that was begun.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Pairs per step, of each GPU.")
@click.option("--accumulate", type=click.IntRange(1),
              help="Gradient accumulation: so many batches per step; the loss is that of all of them.")  # fmt: skip
@click.option("--micro-batch", type=click.IntRange(1),
              help="Encode so many pairs at a time, twice: the loss of a batch that memory does not hold.")  # fmt: skip
@click.option("--gather/--no-gather", default=None, show_default=False,
              help="Several GPUs: one loss over all their batches, or, as published, each its own.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--workers", type=click.IntRange(0), help="Processes that read batches.")
@click.option("--seed", type=int)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Stop after so many epochs without a better val RSUM.",
)
@click.option(
    "--checkpoint-steps",
    type=click.IntRange(1),
    help="Save all that --resume needs every so many steps.",
)
@click.option(
    "--checkpoint-minutes", type=click.FloatRange(0), help="The same by time.  [default: 10]"
)
@click.option(
    "--tensorboard",
    is_flag=True,
    default=None,
    show_default=False,
    help="Write TensorBoard files, too.",
)
@click.option("--run-dir", type=click.Path(path_type=Path),
              help="[default: runs/DATASET-STUDENT-LOSS-seedN-TIME; of a sweep, runs/DATASET-sweep-HASH]")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of --run-dir.")
@click.option("--sweep", metavar="NAME=A,B,... [NAME=...]",
              help="Train every combination, one after the other: --sweep loss=csa,cusa seed=0,1,2. Run it again to "
              "go on.")  # fmt: skip
@click.argument("axes", nargs=-1, metavar="")
@click.version_option(package_name="cusa")
@one_line_errors
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
    """Train a student with the CUSA losses; teachers are read from the store, never loaded.

    Settings come from the preset, then --config, then --set, then the other options. With several GPUs: torchrun
    --nproc-per-node N -m cusa.train ... (the same options).
    """
    from cusa.cli.console import pick_device, quiet_libraries, stop_signals
    from cusa.data.errors import CusaError

    if axes and not sweep:
        raise CusaError(f"unknown argument {axes[0]!r}; see cusa-train --help")
    quiet_libraries()
    with stop_signals() as check_stop:
        from cusa.train.command_settings import Given, chosen_settings, default_run_dir
        from cusa.train.processes import Processes

        given = Given(embeddings, preset, config_file, settings, flags)

        if sweep:
            if resume:
                raise CusaError(
                    "--sweep goes on by itself when it is run again; leave out --resume"
                )
            _sweep((sweep, *axes), given, run_dir, check_stop)
            return
        config = chosen_settings(given, run_dir, resume)
        with closing(Processes(pick_device(config.train.device))) as processes:
            run_dir = processes.everyones(run_dir or default_run_dir(config))[0]
            trainer = _train(config, processes, run_dir, resume, check_stop)
            if processes.leads:
                _print_next([run_dir], trainer)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Run directory.")
@click.option("--to", "kind", required=True, type=click.Choice(["hf", "sentence-transformers"]),
              help="hf: a folder whose backbone transformers loads, heads beside it. sentence-transformers: one whose "
              "SentenceTransformer(folder).encode takes images and texts.")  # fmt: skip
@click.option("--head", type=click.Choice(["cross", "uni"]), default="cross",
              help="sentence-transformers: the head to embed with; uni to compare within a modality.")  # fmt: skip
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best")
@click.option(
    "--out", type=click.Path(path_type=Path), help="New folder.  [default: RUN/export-KIND]"
)
@one_line_errors
def export(run: Path, kind: str, head: str, checkpoint: str, out: Path | None) -> None:
    """Write a trained student as a folder that transformers or sentence-transformers loads, with a model card."""
    from cusa.cli.console import quiet_libraries

    quiet_libraries()
    from cusa.train.saving.export import export as write

    _print(f"exported: {write(run, kind, out, head, checkpoint)}")  # type: ignore[arg-type]


main.others["export"] = export


def _train(
    config: Config,
    processes: Processes,
    run_dir: Path,
    resume: bool,
    check_stop: Callable[[], None],
    is_one_of_several: bool = False,
) -> Trainer:
    """Train a run to its end, showing how it goes.

    Raises:
        Stopped: If a signal came; the run is kept.
    """
    from cusa.cli.console import console, default_workers, progress
    from cusa.eval.metrics.validation import validation_scores
    from cusa.train.commands import resume_command
    from cusa.train.trainer import Trainer

    workers = config.train.workers
    if workers is None:
        workers = default_workers(
            config.student.name == "adapter", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        )
    bar = progress(quiet=not processes.leads)
    with processes.all_or_none():
        shown = _BarReporter(bar)
        reporters: list[Reporter] = [shown]
        if config.train.tensorboard and processes.leads:
            from cusa.train.tensorboard import TensorBoardReporter

            reporters.append(TensorBoardReporter(shown.warned))
        trainer = Trainer(config, processes, workers, run_dir, resume, validation_scores)
    screen = console(quiet=not processes.leads)
    _summary(screen, trainer)

    def stop() -> int:
        try:
            check_stop()
        except Stopped as stopped:
            return stopped.signal
        return 0

    with bar:
        stopped_by = trainer.fit(reporters, stop)
    if stopped_by:
        saved_step = trainer.keeper.saved_step
        progress_kept = f"step {saved_step:,} is kept" if saved_step else "nothing is kept yet"
        way_on = f"go on with: {resume_command(trainer.run_dir, processes.size)}"
        if is_one_of_several:
            way_on = "go on with the same --sweep command"
        raise Stopped(stopped_by, f"{progress_kept}; {way_on}")
    _say_outcome(screen, trainer)
    return trainer


def _say_outcome(screen: Any, trainer: Trainer) -> None:
    done, epochs = trainer.progress, trainer.config.train.epochs
    early = f", stopped early after epoch {done.epoch}" if done.epoch < epochs else ""
    outcome = f"last epoch {done.best_epoch}: no validation split"
    if trainer.data.val_sources is not None:
        outcome = f"best epoch {done.best_epoch}: val RSUM {done.best_rsum:.1f}"
    lines = f"{outcome}{early}", f"run: {trainer.run_dir}", f"student: {trainer.run_dir / 'best'}"
    screen.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _print_next(run_dirs: Sequence[Path], trainer: Trainer) -> None:
    from cusa.train.commands import evaluation_command

    command = evaluation_command(run_dirs, trainer.config, trainer.provenance, trainer.store)
    _print(f"next: {command}")


def _sweep(
    axes: tuple[str, ...],
    given: Given,
    folder: Path | None,
    check_stop: Callable[[], None],
) -> None:
    from rich.table import Table

    from cusa.cli.console import console, pick_device
    from cusa.train.command_settings import default_sweep_dir, flag_settings, new_settings
    from cusa.train.config import merge
    from cusa.train.processes import Processes
    from cusa.train.sweep import figures, parse_grid, summarize, validated

    cells = parse_grid(axes)
    flags = flag_settings(given.flags)
    configs = [new_settings(given, merge(flags, cell.settings)) for cell in cells]
    folder = folder or default_sweep_dir(configs)
    with closing(Processes(pick_device(configs[0].train.device))) as processes:
        for number, (cell, config) in enumerate(zip(cells, configs, strict=True), 1):
            if processes.leads:
                _print(f"\nrun {number} of {len(cells)}: {cell.name}")
            run_dir = folder / cell.name
            begun = processes.everyones(run_dir.exists())[0]  # before the first of them makes it
            trainer = _train(config, processes, run_dir, begun, check_stop, is_one_of_several=True)
        if not processes.leads:
            return
    rows = summarize(folder, cells)
    names = ("i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "RSUM", "RSUM, last epoch")
    if validated(rows):
        title = "validation split, best epoch: mean ± standard deviation"
        table = Table(*rows[0].values, "runs", *names, title=title)
        for row in rows:
            table.add_row(*row.values.values(), str(row.n), *figures(row))
        console().print(table)
    else:
        _print("no validation split: measure the runs with cusa-eval")
    _print(f"table: {folder / 'sweep.md'}, {folder / 'sweep.json'}")
    _print_next([folder / cell.name for cell in cells], trainer)


def _print(text: str) -> None:
    from cusa.cli.console import console

    console().print(text, highlight=False, markup=False, soft_wrap=True)


def _summary(screen: Any, trainer: Trainer) -> None:
    config, processes, footprint = trainer.config, trainer.processes, trainer.footprint
    n_parameters = sum(p.numel() for p in trainer.step.parameters())
    n_trained = sum(p.numel() for p in trainer.step.parameters() if p.requires_grad)
    named = {f"{m} teacher": t for m, t in trainer.provenance.teachers.items()}
    named |= {f"{m} encoder": t for m, t in trainer.provenance.encoders.items()}
    batch = trainer.data.pairs_in_loss
    weights = config.loss.effective_weights(batch)
    several = f", {processes.size} processes" if processes.size > 1 else ""
    lines = [
        f"data      {trainer.store.dataset}: {len(trainer.pairs):,} pairs of split {config.data.train_split!r}, "
        f"{trainer.pairs.n_left_out:,} left out",
        f"student   {config.student.name}, {n_parameters:,} parameters, {n_trained:,} trained",
        *(f"{'rows':9} {what}: {t.name} ({t.settings.model_id})" for what, t in named.items()),
        f"loss      {', '.join(config.loss.terms)}; weights relative to InfoNCE at batch {batch}: "
        + ", ".join(f"{t} {w:g}" for t, w in weights.items()),
        f"memory    about {_size(footprint.state + footprint.activations)} of each device: "
        f"{_size(footprint.state)} of weights, gradients and AdamW, "
        f"{_size(footprint.activations)} of activations",
        f"run       {trainer.run_dir}, {_counted(config.train.epochs, 'epoch')} of "
        f"{_counted(trainer.steps_per_epoch, 'step')}, "
        f"{processes.device.type}{several}, {config.train.precision}, seed {config.train.seed}",
    ]
    if trainer.progress.step:
        lines.append(f"resumed   after epoch {trainer.progress.epoch}, {_step_within(trainer)}")
    lines += [f"note      {note}" for note in trainer.notes]
    screen.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _counted(number: int, unit: str) -> str:
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def _step_within(trainer: Trainer) -> str:
    """Where a run is after its last whole epoch."""
    if trainer.finished:
        return "its last one: nothing is left to train"
    within = trainer.progress.step - trainer.progress.epoch * trainer.steps_per_epoch
    return f"step {within:,} of the next"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


class _BarReporter:
    """Shows a run in a progress bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._losses = ""

    def started(self, trainer: Trainer) -> None:
        total = trainer.config.train.epochs * trainer.steps_per_epoch
        self._epochs, self._terms = trainer.config.train.epochs, trainer.config.loss.terms
        self._taus = list(trainer.loss.temperatures())
        self._epoch = f"epoch {min(self._epochs, trainer.progress.epoch + 1)}/{self._epochs}"
        done = trainer.progress.step
        self._task = self._bar.add_task(
            self._epoch, total=total, completed=done, unit="steps", status=""
        )

    def stepped(self, metrics: dict[str, Any]) -> None:
        losses = " ".join(f"{t} {metrics[t]:.4f}" for t in self._terms)
        taus = " ".join(f"{t} {metrics[t]:.3f}" for t in self._taus if not t.startswith("tau_soft"))
        epoch = min(self._epochs, int(metrics["epoch"]) + 1)
        self._losses = (
            f"{losses} {taus} lr {metrics['lr']:.1e} {metrics['samples_per_s']:,.0f} samples/s"
        )
        self._epoch = f"epoch {epoch}/{self._epochs}"
        self._show(metrics["step"])

    def validated(self, metrics: dict[str, Any]) -> None:
        recalls = ", ".join(f"{way} R@1 {metrics[f'{way}_r1']:.1f}" for way in ("i2t", "t2i"))
        best = "  best so far" if metrics["best"] else ""
        self._say(f"epoch {metrics['epoch']:3}  val RSUM {metrics['rsum']:6.1f}  {recalls}{best}")
        self._epoch = f"epoch {metrics['epoch']}/{self._epochs}"
        self._show(metrics["step"])

    def warned(self, text: str) -> None:
        self._say(f"Warning: {text}")

    def _say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self, step: int) -> None:
        assert self._task is not None
        self._bar.update(self._task, completed=step, description=self._epoch, status=self._losses)

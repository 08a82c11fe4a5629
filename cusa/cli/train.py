"""``cusa-train``: train a student on an embedding store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cusa.cli.console import NOT_NEGATIVE, PATH, POSITIVE, choice_option, command, quiet_libraries
from cusa.data.errors import SettingError
from cusa.screen.console import print_plain
from cusa.train.preset_files import presets


def _given_names(
    _context: click.Context,
    _option: click.Parameter,
    names: tuple[str, ...],
) -> tuple[str, ...] | None:
    """Return the values of a repeatable option; ``None`` if it is not given."""
    return names or None


@command()
@click.option(
    "--embeddings", type=PATH, help="The embedding store, or the set of tars, of cusa-precompute."
)
@click.option(
    "--val-embeddings",
    metavar="PATH",
    help="Another store, whose split val is validated on, and which cusa-eval measures the run on.",
)
@click.option("--student", help="adapter, or a Hugging Face dual encoder by name or folder.")
@click.option(
    "--init",
    metavar="PATH|OWNER/MODEL",
    help="Start from the weights and heads of a run, its best/, an export --to hf, or a student on "
    "the hub, with a new optimizer and schedule.",
)
@click.option(
    "--image-encoder", help="Of a stored image tower: the teacher whose rows are its input."
)
@click.option(
    "--text-encoder", help="Of a stored text tower: the teacher whose rows are its input."
)
@click.option(
    "--freeze",
    type=click.Choice(["image", "text"]),
    multiple=True,
    callback=lambda _context, _option, towers: towers or None,
    help="Train the heads of this tower, not its model; repeatable.",
)
@click.option(
    "--image-teacher",
    multiple=True,
    callback=_given_names,
    help="The store's image teacher that gives the soft labels; repeatable.",
)
@click.option(
    "--text-teacher",
    multiple=True,
    callback=_given_names,
    help="The store's text teacher that gives the soft labels; repeatable.",
)
@click.option(
    "--cross-teacher",
    multiple=True,
    callback=_given_names,
    help="The store's cross-modal teacher, for losses that need one; repeatable.",
)
@click.option(
    "--image-root", help="Folder of the images, or of a set's tars, if not the store's own."
)
@click.option(
    "--loss",
    type=click.Choice(["contrastive", "csa", "usa", "cusa", "rule"]),
    help="Terms to sum; rule: that of --set loss.rule=NAME alone.",
)
@click.option("--preset", help=f"Settings by name: {', '.join(presets())}.  [default: by data]")
@click.option("--config", type=PATH, help="YAML file of settings.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting, e.g. loss.alpha=0.2; all of them: cusa-train settings.",
)
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--weight-decay", type=float, help="Decay of weight matrices.")
@click.option("--warmup", type=float, metavar="EPOCHS", help="Epochs of linear warm-up.")
@click.option(
    "--epochs",
    type=POSITIVE,
    help="Passes over the captions; with --resume, more of them under the run's schedule.",
)
@click.option(
    "--steps",
    type=POSITIVE,
    help="Optimizer steps of the whole run, instead of --epochs; likewise with --resume.",
)
@click.option(
    "--validate-every",
    type=POSITIVE,
    metavar="STEPS",
    help="Steps between validations.  [default: after each epoch]",
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
    "--patience", type=POSITIVE, help="Stop after this many validations without a better RSUM."
)
@click.option("--checkpoint-steps", type=POSITIVE, help="Steps between checkpoints for --resume.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(0),
    help="Minutes between such checkpoints.  [default: 10]",
)
@click.option(
    "--report-to",
    type=click.Choice(["wandb", "trackio", "mlflow", "tensorboard"]),
    multiple=True,
    callback=_given_names,
    help="Log the run to a tracker, too; repeatable.",
)
@click.option(
    "--run-dir",
    type=PATH,
    help="[default: runs/DATASET-STUDENT-LOSS-seedN-TIME; of a sweep, runs/DATASET-sweep-HASH]",
)
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint of --run-dir.")
@click.option(
    "--report",
    is_flag=True,
    help="Evaluate the finished run, or the runs of a sweep, as cusa-eval does; write report.html.",
)
@click.option(
    "--sweep",
    metavar="NAME=A,B,... [NAME=...]",
    help="Train every combination, one after the other: --sweep loss=csa,cusa seed=0,1,2. Run it "
    "again to resume.",
)
@click.argument("axes", nargs=-1, metavar="")
@click.version_option(package_name="cusa")
def main(sweep: str | None, axes: tuple[str, ...], **options: Any) -> None:
    """Train a student with the CUSA losses; the teachers' rows come from a store or a set of tars.

    Settings come from the preset, then --config, then --set, then the other options. With several
    GPUs: torchrun --nproc-per-node N -m cusa.train ... (the same options).
    """
    _check_sweep(sweep, axes, options["resume"])
    quiet_libraries()
    from cusa.cli.train_figures import print_next, print_sweep
    from cusa.stages.train import train
    from cusa.stages.train_grid import train_grid

    if sweep:
        trained_grid = train_grid((sweep, *axes), progress=True, **options)
        if trained_grid.rows:
            print_sweep(trained_grid.folder, trained_grid.rows)
            print_next(trained_grid.runs, trained_grid.evaluation)
        return
    trained_run = train(progress=True, **options)
    if trained_run.leads:
        print_next([trained_run], trained_run.evaluation)


@command()
@click.option("--run", required=True, type=PATH, help="Run directory.")
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["hf", "sentence-transformers"]),
    help="hf: a backbone for transformers, and the heads. sentence-transformers: both encoders.",
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

    print_plain(f"exported: {export_run(run, kind, out, head, checkpoint, _save_towers)}")


def _save_towers(*arguments: Any) -> Any:
    """Write the modules of a student's towers; only then import libraries that take seconds."""
    from cusa.hosts.towers_export import save_towers

    return save_towers(*arguments)


@command("settings")
def list_settings() -> None:
    """List all settings for --set and --config, and what each preset sets."""
    from cusa.train.settings_table import settings_text

    print_plain(settings_text())


main.subcommands |= {"export": export, "settings": list_settings}


def _check_sweep(sweep: str | None, axes: tuple[str, ...], resume: bool) -> None:
    if axes and not sweep:
        raise SettingError(f"unknown argument {axes[0]!r}; see cusa-train --help")
    if sweep and resume:
        raise SettingError(
            "--sweep resumes by itself when it is run again; leave out --resume", name="resume"
        )

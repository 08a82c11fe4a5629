"""``cusa-train``: train a student on an embedding store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.data.console import one_line_errors

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from cusa.train.config import Config
    from cusa.train.loop import Trainer


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--embeddings", type=click.Path(path_type=Path), help="The embedding store of cusa-precompute.")
@click.option("--student", help="adapter, or a Hugging Face dual encoder by name or folder.")
@click.option("--image-encoder", help="Adapter: the store's image teacher whose rows are its input.")
@click.option("--text-encoder", help="Adapter: the store's text teacher whose rows are its input.")
@click.option("--image-teacher", help="The store's image teacher that gives the soft labels.")
@click.option("--text-teacher", help="The store's text teacher that gives the soft labels.")
@click.option("--image-root", help="Folder of the images, if not the store's own.")
@click.option("--loss", type=click.Choice(["contrastive", "csa", "usa", "cusa"]), help="Which terms are summed.")
@click.option("--preset", help="Settings by name.  [default: by data set and student]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings from a YAML file.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="One setting, e.g. loss.alpha=0.2.")
@click.option("--epochs", type=click.IntRange(1))
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--micro-batch", type=click.IntRange(1),
              help="Encode so many pairs at a time, twice: the loss of a batch that memory does not hold.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--workers", type=click.IntRange(0), help="Processes that read batches.")
@click.option("--seed", type=int)
@click.option("--run-dir", type=click.Path(path_type=Path), help="[default: runs/DATASET-STUDENT-LOSS-seedN-TIME]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of --run-dir.")
@click.version_option(package_name="cusa")
@one_line_errors
def main(
    embeddings: Path | None,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    run_dir: Path | None,
    resume: bool,
    **flags: Any,
) -> None:
    """Train a student with the CUSA losses; teachers are read from the store, never loaded.

    Settings come from the preset, then --config, then --set, then the other options.
    """
    from cusa.data.console import (
        console,
        default_workers,
        fail,
        pick_device,
        progress,
        quiet_libraries,
        refuse_several_processes,
    )
    from cusa.data.errors import CusaError

    refuse_several_processes()
    if resume and run_dir is None:
        raise CusaError("--resume: pass --run-dir, the run to go on with")
    if resume and embeddings is None and (preset or config_file):
        raise CusaError("--resume: the run keeps its own settings; leave out --preset and --config")
    begun = run_dir is not None and (run_dir / "config.yaml").exists()
    if resume and run_dir is not None and not (preset or config_file) and (begun or embeddings is None):
        config = _resume_config(run_dir, embeddings, settings, flags)
    else:
        config = _resolve(embeddings, preset, config_file, settings, flags)
    workers = config.train.workers
    if workers is None:
        workers = default_workers(config.student.name == "adapter")
    run_dir = run_dir or _default_run_dir(config)
    from cusa.train.loop import Trainer

    quiet_libraries()
    trainer = Trainer(config, pick_device(config.train.device), workers, run_dir, resume)
    screen = console()
    _summary(screen, trainer)
    try:
        with progress() as bar:
            done = trainer.fit(_BarReporter(bar))
    except KeyboardInterrupt:
        fail(f"interrupted; go on from the last epoch's end with: cusa-train --resume --run-dir {run_dir}", 130)
    best = f"best epoch {done.best_epoch}: val RSUM {done.best_rsum:.1f}"
    screen.print(
        f"{best}\nrun: {trainer.run_dir}\nnext: cusa-eval --run {trainer.run_dir}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _flag_settings(flags: dict[str, Any]) -> dict[str, Any]:
    from cusa.train.losses import TERMS

    sections = {
        "student": ("image_encoder", "text_encoder"),
        "data": ("image_teacher", "text_teacher", "image_root"),
        "train": ("epochs", "batch_size", "micro_batch", "precision", "device", "workers", "seed"),
    }
    nested: dict[str, Any] = {
        section: {n: flags[n] for n in names if flags[n] is not None} for section, names in sections.items()
    }
    if flags["student"] is not None:
        nested["student"]["name"] = flags["student"]
    if flags["loss"] is not None:
        nested["loss"] = {"terms": TERMS[flags["loss"]]}
    return {section: values for section, values in nested.items() if values}


def _resolve(
    embeddings: Path | None,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    flags: dict[str, Any],
) -> Config:
    from cusa.data.errors import CusaError
    from cusa.data.store import EmbeddingStore
    from cusa.train.config import build_config, load_config_file, load_preset, merge, parse_settings

    over = merge(load_config_file(config_file) if config_file else {}, parse_settings(settings))
    over = merge(over, _flag_settings(flags))
    if embeddings is not None:
        over = merge(over, {"data": {"embeddings": str(embeddings)}})
    if preset is None:
        data, student = (over[k] if isinstance(over.get(k), dict) else {} for k in ("data", "student"))
        if not data.get("embeddings"):
            raise CusaError("pass --embeddings, the store that cusa-precompute wrote")
        preset = _default_preset(EmbeddingStore(data["embeddings"]).dataset, student.get("name"))
    return build_config(merge(load_preset(preset), over))


def _default_preset(dataset: str, student: str | None) -> str:
    if student == "adapter" or (student is None and dataset == "demo"):
        return "demo" if dataset == "demo" else "adapter"
    return "paper-flickr-vit-b32" if dataset == "flickr30k" else "paper-coco-vit-b32"


def _resume_config(run_dir: Path, embeddings: Path | None, settings: tuple[str, ...], flags: dict[str, Any]) -> Config:
    """The run's own settings; other ones given beside --resume are refused by the trainer, which names them."""
    import dataclasses

    from cusa.train.checkpoint import load_run
    from cusa.train.config import build_config, merge, parse_settings

    stored = dataclasses.asdict(load_run(run_dir)[0])
    moved = {"data": {"embeddings": str(embeddings)}} if embeddings is not None else {}
    return build_config(merge(merge(merge(stored, parse_settings(settings)), _flag_settings(flags)), moved))


def _default_run_dir(config: Config) -> Path:
    from cusa.data.store import EmbeddingStore
    from cusa.train.losses import TERMS

    dataset = EmbeddingStore(config.data.embeddings).dataset
    student = Path(config.student.name).name
    loss = next((n for n, terms in TERMS.items() if set(terms) == set(config.loss.terms)), "-".join(config.loss.terms))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{dataset}-{student}-{loss}-seed{config.train.seed}-{stamp}"


def _summary(screen: Any, trainer: Trainer) -> None:
    config = trainer.config
    n_parameters = sum(p.numel() for p in trainer.student.parameters())
    named = {f"{m} teacher": name for m, (name, _) in trainer.teachers.items()}
    named |= {f"{m} encoder": name for m, (name, _) in trainer.encoders.items()}
    weights = config.loss.effective_weights(config.train.batch_size)
    lines = [
        f"data      {trainer.store.dataset}: {len(trainer.pairs):,} pairs of split {config.data.train_split!r}, "
        f"{trainer.pairs.n_left_out:,} left out",
        f"student   {config.student.name}, {n_parameters:,} parameters",
        *(f"{'rows':9} {what}: {name}" for what, name in named.items()),
        f"loss      {', '.join(config.loss.terms)}; weights relative to InfoNCE at batch {config.train.batch_size}: "
        + ", ".join(f"{t} {w:g}" for t, w in weights.items()),
        f"run       {trainer.run_dir}, {config.train.epochs} epochs of {trainer.steps_per_epoch:,} steps, "
        f"{trainer.device}, {config.train.precision}, seed {config.train.seed}",
    ]
    if trainer.progress.epoch:
        lines.append(f"resumed   after epoch {trainer.progress.epoch}")
    screen.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


class _BarReporter:
    """Shows a run in a progress bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._epoch = "epoch 1"
        self._losses = self._val = ""

    def started(self, trainer: Trainer) -> None:
        total = trainer.config.train.epochs * trainer.steps_per_epoch
        self._epochs, self._terms = trainer.config.train.epochs, trainer.config.loss.terms
        self._taus = list(trainer.loss.temperatures())
        done = trainer.progress.step
        self._task = self._bar.add_task(self._epoch, total=total, completed=done, unit="steps", status="")

    def stepped(self, metrics: dict[str, Any]) -> None:
        losses = " ".join(f"{t} {metrics[t]:.4f}" for t in self._terms)
        taus = " ".join(f"{t} {metrics[t]:.3f}" for t in self._taus if not t.startswith("tau_soft"))
        epoch = min(self._epochs, int(metrics["epoch"]) + 1)
        self._losses = f"{losses} {taus} lr {metrics['lr']:.1e}"
        self._epoch = f"epoch {epoch}/{self._epochs}"
        self._show(metrics["step"])

    def validated(self, metrics: dict[str, Any], best: bool) -> None:
        self._val = f" val RSUM {metrics['rsum']:.1f}{' (best)' if best else ''}"
        self._show(metrics["step"])

    def _show(self, step: int) -> None:
        assert self._task is not None
        self._bar.update(self._task, completed=step, description=self._epoch, status=self._losses + self._val)

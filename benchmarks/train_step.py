"""Time and memory of a training step: contrastive alone, CUSA from the store, CUSA with live
teachers.

    python benchmarks/train_step.py --out benchmarks/results/train_step_cpu.json
    python benchmarks/train_step.py --device cuda --out benchmarks/results/train_step_gpu.json

CLIP ViT-B/32 with random weights, trained by the Trainer itself (worker processes, AdamW, clipping,
log) from image files and a store of COCO's size; batch 32 and fp32 on a CPU, 128 and bf16 on a GPU.
Baseline: the contrastive term alone, without teachers. *live* is the published way: a sentence
encoder of mpnet's size (random weights, in the student's precision, on the student's tokens: no
second tokenisation is counted) runs on each batch's captions, and the image teacher's features come
from a dictionary of all images in memory.

Time: the trainers live in one process, and one thread, and take turns of a few steps; the figure is
the median over rounds of a way's time over contrastive's beside it. Memory: each way in a fresh
process, after so many steps: peak allocation on the GPU; and host memory that is private (Pss_Anon:
what forked processes share counts once), trainer and workers together, once the trainer's allocator
has given back what it had freed.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from loading import SIZES, TEACHERS, coco_size_store, folder_of, machine, paired, save_processors
from rich.console import Console
from rich.table import Table
from torch import nn

from cusa.cli.console import quiet_libraries
from cusa.data.worker_pool import WorkerPool
from cusa.eval.metrics.validation import validation_scores
from cusa.stages.machine import default_workers
from cusa.train.agreement import agree_to_go_on
from cusa.train.config_building import build_config, merge
from cusa.train.loader import Batch, Pairs, on_device
from cusa.train.loss.config import TERMS
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.sources import student_sources
from cusa.train.step import AUTOCAST
from cusa.train.teacher_set import TeacherSet
from cusa.train.trainer import Trainer

from timing import in_fresh_process, in_turns

_TINY = "--n-images 40 --images {images} --clip {clip} --batch-size 4 --workers 1 --live-layers 1"
SMOKE = (
    f"{_TINY} --rounds 1 --steps 1 --memory-rounds 0",
    f"{_TINY} --rounds 0 --memory-rounds 1 --memory-steps 1 --way contrastive",
)
WAYS = ("contrastive", "cusa", "live")


@dataclass(frozen=True)
class Setting:
    """What is trained, on what.

    Attributes:
        store: The store.
        clip: Folder of the student.
        live_layers: Of the live sentence encoder.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Pairs per step.
        precision: Of the encoders.
        workers: Processes that read batches.
    """

    store: Path
    clip: Path
    live_layers: int
    device: str
    batch_size: int
    precision: str
    workers: int


def make_clip(folder: Path) -> Path:
    """CLIP ViT-B/32 with random weights, its preprocessing, and a tokeniser of the
    made-up words.
    """
    from transformers import CLIPConfig, CLIPModel

    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config={"eos_token_id": 1, "bos_token_id": 0})).save_pretrained(
            folder
        )
        save_processors(folder)
    return folder


class LiveTeachers:
    """Gives a batch its teacher rows within the step, as the published code does."""

    def __init__(self, trainer: Trainer, layers: int) -> None:
        from transformers import MPNetConfig, MPNetModel

        config, self._device = trainer.setup.config, trainer.setup.processes.device
        size = MPNetConfig(num_hidden_layers=layers)
        self._encoder = MPNetModel(size, add_pooling_layer=False).to(self._device).eval()
        stored = trainer.setup.store.embeddings("unicom", config.data.train_split)
        self._features = {
            row: torch.from_numpy(stored.gather([row])[0]).float() for row in range(len(stored))
        }
        self._reduced = AUTOCAST.get(config.train.precision)

    @torch.no_grad()
    def __call__(self, _module: nn.Module, arguments: tuple[Batch]) -> tuple[Batch]:
        """Forward pre-hook of the training step."""
        (batch,) = arguments
        image = torch.stack([self._features[row] for row in batch.image_ids.tolist()]).to(
            self._device
        )
        with torch.autocast(self._device.type, self._reduced, enabled=self._reduced is not None):
            tokens = self._encoder(**batch.texts).last_hidden_state
        mask = batch.texts["attention_mask"].unsqueeze(-1)
        text = (tokens * mask).sum(1) / mask.sum(1)
        return (replace(batch, teacher_image=image, teacher_text=text),)


def make_trainer(setting: Setting, way: str, run_dir: Path) -> Trainer:
    """A trainer that goes one of the ways."""
    settings = {
        "data": {"embeddings": str(setting.store)},
        "student": {"name": str(setting.clip)},
        "loss": {"terms": TERMS["contrastive" if way == "contrastive" else "cusa"]},
        "train": {
            "batch_size": setting.batch_size,
            "device": setting.device,
            "precision": setting.precision,
            "checkpoint_minutes": None,
        },
    }
    config = build_config(merge(load_preset("paper-coco-vit-b32"), settings))
    trainer = Trainer(
        config,
        Processes(setting.device),
        setting.workers,
        run_dir,
        resume=False,
        validation_scores=validation_scores,
    )
    if way == "live":
        sources = student_sources(
            trainer.setup.store, "train", trainer.setup.config, {}, trainer.setup.towers.processors
        )
        trainer.setup.data.pairs = Pairs(*sources, TeacherSet())
        trainer.setup.step.register_forward_pre_hook(LiveTeachers(trainer, setting.live_layers))
    return trainer


class Paced:
    """A trainer that takes its steps when it is asked to.

    In this thread: each of several threads would have its own team of OpenMP threads, and those
    would fight for cores.
    """

    def __init__(self, trainer: Trainer) -> None:
        device = trainer.setup.processes.device
        self._trainer = trainer
        data, pin = trainer.setup.data, device.type == "cuda"
        self._pool = WorkerPool(data.pairs, trainer.setup.workers, "fork", pin)
        self._batches = on_device(self._pool.read(data.order), device, with_inputs=True)
        trainer.setup.step.train()

    def run(self, steps: int) -> None:
        """So many, as the Trainer's own loop takes them."""
        trainer = self._trainer
        for _ in range(steps):
            agree_to_go_on(trainer.setup.processes, trainer.keeper, lambda: None, None, "")
            if lost := trainer._train_on(next(self._batches)):
                raise SystemExit(lost)

    def end(self) -> None:
        """End its workers."""
        self._pool.close()


def step_seconds(
    setting: Setting, ways: Sequence[str], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds per step of each way by round, all in this process."""
    with tempfile.TemporaryDirectory() as runs:
        paced = {way: Paced(make_trainer(setting, way, Path(runs) / way)) for way in ways}
        found = in_turns({way: lambda p=p: p.run(steps) for way, p in paced.items()}, rounds)  # type: ignore[misc]
        for trainer in paced.values():
            trainer.end()
    return {way: [taken / steps for taken in times] for way, times in found.items()}


class Enough(Exception):  # noqa: N818 - no error
    """Ends a trainer without a checkpoint."""


def host_memory() -> float:
    """Private MiB of this process and its workers."""
    # What is freed but not given back, hundreds of MiB by chance, would hide the rest.
    ctypes.CDLL(None).malloc_trim(0)
    kib = 0
    for pid in [os.getpid(), *(p.pid for p in multiprocessing.active_children())]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
    return kib / 1024


def _memory(setting: Setting, way: str, steps: int, answer: Any) -> None:
    quiet_libraries()
    left = steps

    def check_stop() -> None:
        nonlocal left
        if left == 0:
            found = {"private": host_memory()}
            if setting.device == "cuda":
                found["gpu_peak"] = torch.cuda.max_memory_allocated() / 2**20
            answer.put(found)
            raise Enough
        left -= 1

    with tempfile.TemporaryDirectory() as run_dir:
        try:
            make_trainer(setting, way, Path(run_dir) / "run").fit(check_stop=check_stop)
        except Enough:
            return


def memory(setting: Setting, way: str, steps: int) -> dict[str, float]:
    """MiB after so many steps, in a fresh process."""
    return in_fresh_process(_memory, setting, way, steps)


@click.command()
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--batch-size", type=int, help="[default: 32 on a CPU, 128 on a GPU]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="[default: fp32 on a CPU, else bf16]",
)
@click.option("--workers", type=int, help="[default: the trainer's]")
@click.option("--rounds", default=12, help="Of turns; 0: memory alone.")
@click.option("--steps", type=int, help="A turn's.  [default: 2 on a CPU, 20 on a GPU]")
@click.option("--memory-rounds", default=3, help="Fresh processes of each way; 0: time alone.")
@click.option("--memory-steps", default=8)
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS)
@click.option(
    "--store", type=click.Path(path_type=Path), help="Folder to keep the store and the student in."
)
@click.option(
    "--images", type=click.Path(exists=True, path_type=Path), help="Folder of JPEG files to repeat."
)
@click.option(
    "--n-images", default=SIZES["train"], help="Of the training split; five captions each."
)
@click.option(
    "--clip", type=click.Path(exists=True, path_type=Path), help="Folder of another student."
)
@click.option("--live-layers", default=12, help="Of the sentence encoder that runs in the step.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str,
    batch_size: int | None,
    precision: str | None,
    workers: int | None,
    rounds: int,
    steps: int | None,
    memory_rounds: int,
    memory_steps: int,
    ways: tuple[str, ...],
    store: Path | None,
    images: Path | None,
    n_images: int,
    clip: Path | None,
    live_layers: int,
    out: Path | None,
) -> None:
    """Measure, print a table, write the figures to --out."""
    quiet_libraries()
    if "contrastive" not in ways:
        raise click.UsageError("--way: contrastive is what the others are measured against")
    on_gpu = device == "cuda"
    times: dict[str, list[float]] = {}
    held: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with folder_of(store) as folder:
        setting = Setting(
            coco_size_store(folder, images, n_images),
            clip or make_clip(folder / "clip"),
            live_layers,
            device,
            batch_size or (128 if on_gpu else 32),
            precision or ("bf16" if on_gpu else "fp32"),
            default_workers(False) if workers is None else workers,
        )
        for _ in range(memory_rounds):
            for way in ways:
                held[way].append(memory(setting, way, memory_steps))
        if rounds:
            times = step_seconds(setting, ways, steps or (20 if on_gpu else 2), rounds)
    results = machine(device) | {
        "batch_size": setting.batch_size,
        "precision": setting.precision,
        "workers": setting.workers,
        "teachers": TEACHERS,
        "step_s": times,
        "step_over_contrastive": {way: paired(times, way, "contrastive") for way in times},
        "memory_mib": held,
    }
    if memory_rounds:
        medians = {
            w: {k: statistics.median(f[k] for f in found) for k in found[0]}
            for w, found in held.items()
        }
        base = medians["contrastive"]
        results["memory_over_contrastive_mib"] = {
            w: {k: m[k] - base[k] for k in m} for w, m in medians.items()
        }
        results["memory_over_contrastive"] = {
            w: {k: m[k] / base[k] for k in m} for w, m in medians.items()
        }
    _show(results, ways)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


def _show(results: dict[str, Any], ways: Sequence[str]) -> None:
    table = Table("way", "s / step", "over contrastive", "private host MiB over", "GPU peak over")
    for way in ways:
        times = results["step_s"].get(way)
        more = results.get("memory_over_contrastive_mib", {}).get(way, {})
        gpu = results.get("memory_over_contrastive", {}).get(way, {}).get("gpu_peak")
        table.add_row(
            way,
            f"{statistics.median(times):.4f}" if times else "",
            f"{results['step_over_contrastive'][way]:.4f}" if times else "",
            f"{more['private']:.1f}" if more else "",
            f"{gpu:.5f}" if gpu else "",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

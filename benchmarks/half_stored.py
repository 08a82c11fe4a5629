"""A student whose captions are stored: step time over a vision-only step, and memory.

    python benchmarks/half_stored.py --out benchmarks/results/half_stored.json
    python benchmarks/half_stored.py --rounds 0 --memory-rounds 0 --malloc-rounds 3 \
        --out benchmarks/results/half_stored_malloc.json

EfficientNet-lite0 as trained image tower, on image files and a store of COCO's size; batch 32, fp32
on a CPU. Ways: *vision* is the image tower and its heads alone, on the same pictures, with AdamW
and clipping, and a loss that costs nothing; *half-stored* adds the captions' rows, their MLP and
heads, and the CUSA loss; *two towers* trains MiniLM on the captions instead.

Time: CPU seconds in one process without workers, which take turns of a few steps, since other
programs may use the cores, too; the figure is the median over rounds of a way's time over vision's
beside it. Memory: each way in a fresh process, after so many steps: its private memory (Pss_Anon),
once the allocator has given back what it had freed. Allocator: CPU seconds of a step in fresh
processes, as glibc's malloc is, and where it gives no freed memory back to the system (variables of
the environment), so that the system need not clear the same pages again in every step.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from loading import SIZES, coco_size_store, folder_of, machine, paired
from rich.console import Console
from rich.table import Table
from train_step import Paced, host_memory

from cusa.cli.console import quiet_libraries
from cusa.eval.metrics.validation import validation_scores
from cusa.train.config_building import build_config, merge
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.sources import student_sources
from cusa.train.trainer import Trainer
from cusa.train.training_state import TrainingState

from timing import cpu_seconds, in_fresh_process, in_turns

_TINY = "--n-images 40 --images {images} --batch-size 2"
SMOKE = (f"{_TINY} --rounds 1 --steps 1 --memory-rounds 0 --way vision --way half-stored",)
# What glibc reads as a process begins: to keep freed memory, and to take it from the heap at all.
KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "200000000",
}
KEEPING = "keeps freed memory"
ALLOCATORS = {"default": dict.fromkeys(KEEP_FREED), KEEPING: KEEP_FREED}
TEXT_TOWERS = {"vision": "stored:mpnet", "half-stored": "stored:mpnet", "two towers": "minilm"}


@dataclass(frozen=True)
class Setting:
    """What is trained, on what.

    Attributes:
        store: The store.
        batch_size: Pairs per step.
    """

    store: Path
    batch_size: int


def make_trainer(setting: Setting, way: str, run_dir: Path) -> Trainer:
    """A trainer of one of the ways; vision's is that of the half-stored student."""
    settings = {
        "data": {"embeddings": str(setting.store), "val_split": None},
        "student": {"image": "efficientnet-lite0", "text": TEXT_TOWERS[way]},
        "train": {
            "batch_size": setting.batch_size,
            "device": "cpu",
            "checkpoint_minutes": None,
        },
    }
    config = build_config(merge(load_preset("towers"), settings))
    processes = Processes("cpu")
    return Trainer(config, processes, 0, run_dir, False, validation_scores)


class VisionOnly:
    """Takes steps of the image tower and its heads alone."""

    def __init__(self, trainer: Trainer) -> None:
        setup = trainer.setup
        config = setup.config
        encoders, processors = setup.provenance.encoder_names, setup.towers.processors
        sources = student_sources(setup.store, "train", config, encoders, processors)
        self._read = sources.inputs.image.read
        self._pairs = setup.data.pairs
        self._batches = iter(setup.data.order)
        self._step = setup.step.train()
        self._state = TrainingState(setup.step, config, setup.processes.device)

    def run(self, steps: int) -> None:
        """Take so many steps."""
        for _ in range(steps):
            image_rows, _ = self._pairs.rows(next(self._batches))
            features = self._step.student.encode_image(self._read(image_rows))
            loss = features.cross.square().mean() + features.uni.square().mean()
            self._state.descend(loss, learning_rate=1e-6)


def paced(setting: Setting, way: str, run_dir: Path) -> VisionOnly | Paced:
    """What takes a way's steps when it is asked to."""
    trainer = make_trainer(setting, way, run_dir)
    if way == "vision":
        return VisionOnly(trainer)
    return Paced(trainer)


def step_seconds(
    setting: Setting, ways: tuple[str, ...], steps: int, rounds: int
) -> dict[str, list[float]]:
    """CPU seconds per step of each way by round."""
    with tempfile.TemporaryDirectory() as runs:
        turns: dict[str, Callable[[], object]] = {}
        for way in ways:
            takes_steps = paced(setting, way, Path(runs) / way)
            turns[way] = lambda takes_steps=takes_steps: takes_steps.run(steps)  # type: ignore[misc]
        seconds = in_turns(turns, rounds, cpu_seconds)
    return {way: [taken / steps for taken in times] for way, times in seconds.items()}


def _memory(setting: Setting, way: str, steps: int, answer: Any) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as run_dir:
        paced(setting, way, Path(run_dir) / "run").run(steps)
        answer.put(host_memory())


def memory(setting: Setting, way: str, steps: int) -> float:
    """Private MiB after so many steps, in a fresh process."""
    return in_fresh_process(_memory, setting, way, steps)


def _fresh_step_seconds(setting: Setting, way: str, steps: int, answer: Any) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as run_dir:
        takes_steps = paced(setting, way, Path(run_dir) / "run")
        takes_steps.run(1)
        answer.put(cpu_seconds(lambda: takes_steps.run(steps)) / steps)


def allocator_seconds(
    setting: Setting, ways: tuple[str, ...], steps: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """CPU seconds per step by way, allocator and round, each in a fresh process."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for way in ways:
        seconds[way] = {name: [] for name in ALLOCATORS}
        for _ in range(rounds):
            for name, variables in ALLOCATORS.items():
                with environment(variables):
                    taken = in_fresh_process(_fresh_step_seconds, setting, way, steps)
                seconds[way][name].append(taken)
    return seconds


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for processes that begin within; ``None`` removes one."""
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@click.command()
@click.option("--batch-size", default=32)
@click.option("--rounds", default=10, help="Of turns; 0: memory alone.")
@click.option("--steps", default=1, help="A turn's.")
@click.option("--memory-rounds", default=3, help="Fresh processes of each way; 0: time alone.")
@click.option("--memory-steps", default=3)
@click.option(
    "--malloc-rounds", default=0, help="Pairs of fresh processes to compare allocators in."
)
@click.option(
    "--way", "ways", multiple=True, type=click.Choice(list(TEXT_TOWERS)), default=tuple(TEXT_TOWERS)
)
@click.option("--store", type=click.Path(path_type=Path), help="Folder to keep the store in.")
@click.option(
    "--images", type=click.Path(exists=True, path_type=Path), help="Folder of JPEG files to repeat."
)
@click.option(
    "--n-images", default=SIZES["train"], help="Of the training split; five captions each."
)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    batch_size: int,
    rounds: int,
    steps: int,
    memory_rounds: int,
    memory_steps: int,
    malloc_rounds: int,
    ways: tuple[str, ...],
    store: Path | None,
    images: Path | None,
    n_images: int,
    out: Path | None,
) -> None:
    """Measure, print a table, write the figures to --out."""
    quiet_libraries()
    if "vision" not in ways:
        raise click.UsageError("--way: vision is what the others are measured against")
    times: dict[str, list[float]] = {}
    private: dict[str, list[float]] = {way: [] for way in ways}
    with folder_of(store) as folder:
        setting = Setting(coco_size_store(folder, images, n_images), batch_size)
        for _ in range(memory_rounds):
            for way in ways:
                private[way].append(memory(setting, way, memory_steps))
        if rounds:
            times = step_seconds(setting, ways, steps, rounds)
        by_allocator = allocator_seconds(setting, ways, steps, malloc_rounds)
    results = machine("cpu") | {
        "batch_size": batch_size,
        "step_cpu_s": times,
        "step_over_vision": {way: paired(times, way, "vision") for way in times},
        "private_mib": private,
    }
    if malloc_rounds:
        results["allocator_step_cpu_s"] = by_allocator
        results["keeping_over_default"] = {
            way: paired(seconds, KEEPING, "default") for way, seconds in by_allocator.items()
        }
    _show(results, ways)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


def _show(results: dict[str, Any], ways: tuple[str, ...]) -> None:
    table = Table("way", "CPU s / step", "over vision", "private MiB", KEEPING)
    keeping = results.get("keeping_over_default", {})
    for way in ways:
        times = results["step_cpu_s"].get(way)
        private = results["private_mib"][way]
        table.add_row(
            way,
            f"{statistics.median(times):.3f}" if times else "",
            f"{results['step_over_vision'][way]:.4f}" if times else "",
            f"{statistics.median(private):.0f}" if private else "",
            f"{keeping[way]:.2f}" if keeping else "",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

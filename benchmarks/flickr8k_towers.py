"""The study's losses with fine-tuned students: both towers trained, or one beside stored captions.

    python benchmarks/flickr8k_towers.py runs/f8k.h5 --run-dirs runs/towers --split test \
        --judgements CrowdFlowerAnnotations.txt --out results.json

EfficientNet-lite0 and MiniLM, which are also the teachers, on a store that cusa-precompute made of
Flickr8k; preset ``towers`` and further settings, the losses of flickr8k.py. *two towers* trains
both; *half-stored* trains the image tower, and its captions are the text teacher's rows; *stored
towers* is an adapter that sees as many pairs. With --heads-steps, heads are trained first, beside
frozen towers. Figures are written after each run; the same command goes on after a kill: a run that
was under way resumes exactly from its folder's newest checkpoint, and finished ones are not
repeated.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from flickr8k import Experiments, Results
from loading import folder_of
from rich.console import Console

from cusa.cli.console import one_line_errors, quiet_libraries
from cusa.data.embeddings import SplitEmbeddings
from cusa.eval.evaluators.judgements.data import read_judgements
from cusa.eval.metrics.validation import validation_scores
from cusa.stages.machine import default_workers
from cusa.train.config import Config
from cusa.train.config_building import build_config, merge, override, parse_settings
from cusa.train.encode_split import encode_split
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.saving.run_dir import load_trained, read_history
from cusa.train.saving.sessions import read_sessions
from cusa.train.sources import student_sources
from cusa.train.student_config import MODALITIES
from cusa.train.trainer import Trainer

from study_options import study_options
from study_runs import Study, Variant
from study_tables import experiment_table
from study_variants import CONTRASTIVE, IMAGE_CSA, PUBLISHED, STRONG

_TINY = (
    "{store} --image-tower hf:{vit} --text-tower st:{words} --image-teacher vision "
    "--text-teacher words --set train.batch_size=4 --set train.steps=1 "
    "--set optim.warmup_steps=0 --workers 0"
)
SMOKE = (f"{_TINY} --split test --judgements {{judgements}} --only contrastive --heads-steps 1",)
STUDENTS = ("two towers", "half-stored", "stored towers")
HEADS_LR = 1e-3
HEADS_SEED = 1000
LOSSES = {
    "contrastive": CONTRASTIVE,
    "CUSA as published": PUBLISHED,
    "temperature 0.3, alpha 1, beta 5": Variant(STRONG),
    "temperature 0.3, alpha 1, beta 5, image labels in CSA": Variant(IMAGE_CSA),
}


@dataclass(frozen=True, kw_only=True)
class TowerStudy(Study):
    """A study whose students read pictures; each run keeps its folder.

    Attributes:
        run_dirs: Where the runs' folders are.
        workers: Processes that read batches.
        heads_steps: Steps that train the heads alone, with frozen towers, before both.
        common: What all runs of the command share, as their rows say it.
    """

    run_dirs: Path
    workers: int
    heads_steps: int
    common: list[str]

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train one run, or the rest of it, and measure its best student by val, or its last."""
        config = self._config(variant, seed)
        # Runs with other common settings, as of fewer steps, are none to go on from.
        digest = hashlib.sha256(json.dumps(self.common).encode()).hexdigest()[:8]
        run_dir = self.run_dirs / f"{_folder_name(variant)}-{digest}-seed{seed}"
        seconds = 0.0
        if self.heads_steps and not config.student.is_adapter:
            heads_dir = run_dir.with_name(f"{run_dir.name}-heads")
            heads = self._train(heads_config(config, self.heads_steps), heads_dir)
            seconds = _seconds(heads)
            config = replace(config, student=replace(config.student, init=str(heads_dir)))
        trainer = self._train(config, run_dir)
        lines = read_history(run_dir).lines
        val_rsum = [line["rsum"] for line in lines if line["kind"] == "val"]
        validated: dict[str, Any] = {}
        if val_rsum:
            validated["best_epoch"] = int(np.argmax(val_rsum)) + 1
            validated["val_rsum"] = np.round(val_rsum, 2).tolist()
        return {
            "steps": trainer.progress.step,
            "pairs": trainer.progress.step * config.train.batch_size,
            "seconds": round(seconds + _seconds(trainer), 1),
            **validated,
            **self.measure(self._encode(config, run_dir)),
        }

    def _train(self, config: Config, run_dir: Path) -> Trainer:
        processes = Processes("cpu")
        trainer = Trainer(config, processes, self.workers, run_dir, True, validation_scores)
        trainer.fit()
        return trainer

    def _encode(self, config: Config, run_dir: Path) -> SplitEmbeddings:
        trained = load_trained(run_dir)
        encoders = trained.origin.provenance.encoder_names
        sources = student_sources(self.store, self.split, config, encoders, trained.processors)
        return encode_split(trained.student, sources, "cpu", 64, self.workers)

    def _config(self, variant: Variant, seed: int) -> Config:
        preset = load_preset("towers")
        # The losses are those that the variants name, whatever the preset has.
        preset.pop("loss", None)
        settings = override(preset, self.settings)
        settings = override(settings, parse_settings(variant.settings))
        return build_config(merge(settings, {"train": {"seed": seed}}))


def heads_config(config: Config, steps: int) -> Config:
    """Return the settings of a run that trains the heads of a run's student alone."""
    trained_towers = tuple(tower for tower in MODALITIES if tower not in config.student.stored)
    optim = replace(config.optim, lr=HEADS_LR, warmup_epochs=0, warmup_steps=steps // 10)
    # Another order than that of the run.
    seed = config.train.seed + HEADS_SEED
    return replace(
        config,
        data=replace(config.data, val_split=None),
        student=replace(config.student, freeze=trained_towers),
        optim=optim,
        train=replace(config.train, epochs=None, steps=steps, validate_every=None, seed=seed),
    )


def _seconds(trainer: Trainer) -> float:
    """Return the seconds that all sessions of a run took."""
    return sum(session.seconds for session in read_sessions(trainer.setup.run_dir).sessions)


def _folder_name(variant: Variant) -> str:
    """Return the settings of a variant as a name of a folder."""
    values = [setting.partition("=")[2] for setting in variant.settings]
    characters = "_".join(values)
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in characters)


def experiments(
    image_tower: str, text_tower: str, image_teacher: str, text_teacher: str
) -> Experiments:
    """Return the variants of each kind of student, by name."""
    stored_image, stored_text = f"stored:{image_teacher}", f"stored:{text_teacher}"
    towers_of = {
        "two towers": (image_tower, text_tower),
        "half-stored": (image_tower, stored_text),
        "stored towers": (stored_image, stored_text),
    }
    students: Experiments = {}
    for student, (image, text) in towers_of.items():
        towers = f"student.image={image}", f"student.text={text}"
        students[student] = {
            loss: Variant((*towers, *variant.settings)) for loss, variant in LOSSES.items()
        }
    return students


@click.command()
@study_options
@click.option("--student", "students", multiple=True, type=click.Choice(STUDENTS), default=STUDENTS)
@click.option(
    "--only", multiple=True, type=click.Choice(list(LOSSES)), default=tuple(LOSSES), help="Losses."
)
@click.option("--image-tower", default="efficientnet-lite0")
@click.option("--text-tower", default="minilm", help="Of two towers.")
@click.option("--image-teacher", default="efficientnet-lite0")
@click.option("--text-teacher", default="minilm", help="And the rows of stored captions.")
@click.option("--heads-steps", default=0, help="Steps of the heads alone, before both are trained.")
@click.option("--workers", type=int, help="[default: those of cusa-train]")
@click.option(
    "--run-dirs", type=click.Path(path_type=Path), help="Where runs are kept and resumed."
)
@one_line_errors
def main(
    store: Path,
    students: tuple[str, ...],
    only: tuple[str, ...],
    seeds: int,
    split: str,
    judgements: Path | None,
    image_tower: str,
    text_tower: str,
    image_teacher: str,
    text_teacher: str,
    heads_steps: int,
    more: tuple[str, ...],
    workers: int | None,
    run_dirs: Path | None,
    out: Path | None,
) -> None:
    """Train and measure students on STORE, and print a table for each kind."""
    quiet_libraries()
    common = [f"data.image_teacher={image_teacher}", f"data.text_teacher={text_teacher}", *more]
    settings = merge({"data": {"embeddings": str(store)}}, parse_settings(common))
    if heads_steps:
        common.append(f"heads_steps={heads_steps}")
    judged = read_judgements(judgements) if judgements is not None else None
    n_workers = default_workers(False) if workers is None else workers
    results = Results(out)
    variants = experiments(image_tower, text_tower, image_teacher, text_teacher)
    with folder_of(run_dirs) as folder:
        study = TowerStudy(
            store,
            settings,
            split,
            judged,
            run_dirs=folder,
            workers=n_workers,
            heads_steps=heads_steps,
            common=common,
        )
        where = {"data_set": study.store.dataset, "split": split, "common": common}
        for seed, student, loss in itertools.product(range(seeds), students, only):
            facts = {**where, **variants[student][loss].facts(), "seed": seed}
            if not results.has(facts, judged is not None):
                measured = study.run(variants[student][loss], seed)
                results.add(facts, measured)
                rsum = measured["figures"]["rsum"]
                click.echo(f"{student}: {loss}, seed {seed}: RSUM {rsum:.1f}")
    for student in students:
        table = experiment_table(student, variants[student], where, results.rows)
        if table.row_count:
            Console(width=220).print(table)


if __name__ == "__main__":
    main()

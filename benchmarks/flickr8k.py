r"""The study: which settings of the soft labels help, and which of it is the teachers' knowledge.

    python benchmarks/flickr8k.py runs/f8k.h5 --experiments losses --out results.json
    python benchmarks/flickr8k.py runs/f8k.h5 --experiments finals --split test --seeds 5 \
        --judgements CrowdFlowerAnnotations.txt --out results.json

Adapters are trained on split train of a store that cusa-precompute made of Flickr8k, with teachers
efficientnet-lite0, minilm and mpnet. Settings are chosen on val, one row a run: the best epoch by
val, as cusa-train keeps it. Only ``finals`` is for split test. Figures are written after each run;
the same command goes on after a kill, and runs that the file has are not repeated, whichever
experiment they are in. Without --experiments, the tables and the figure of the file are made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cusa.cli.console import quiet_libraries
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.judgements.data import read_judgements
from cusa.train.config_building import merge, parse_settings

from study_runs import LABELS, SHUFFLED, TAUGHT, Study, Taught, Variant
from study_tables import experiment_table, temperature_chart
from timing import machine

SMOKE = (
    "{store} --image-encoder vision --text-encoder words "
    "--experiments controls --experiments orders --epochs 1 --set train.batch_size=8",
    "{store} --image-encoder vision --text-encoder words --experiments losses --split test "
    "--judgements {judgements} --seeds 2 --epochs 1 --set train.batch_size=8 --set "
    "train.precision=bf16",
)
TEMPERATURES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


def soft(image: float, text: float | None = None) -> tuple[str, ...]:
    """Return the settings of soft-label temperatures; one for both modalities without ``text``."""
    settings = ["loss.tau_soft.shared=false"]
    for modality, tau in (("image", image), ("text", text or image)):
        settings.append(f"loss.tau_soft.{modality}.init={tau}")
        settings.append(f"loss.tau_soft.{modality}.min={min(tau, 0.1)}")
    return tuple(settings)


def weights(alpha: float, beta: float) -> tuple[str, ...]:
    """Return the settings of the weights of CSA and USA."""
    return f"loss.alpha={alpha}", f"loss.beta={beta}"


def temperatures(*settings: str, taught: Taught = "both") -> dict[str, Variant]:
    """Return a variant for each soft-label temperature, by its name."""
    variants = {}
    for tau in TEMPERATURES:
        variants[str(tau)] = Variant((*settings, *soft(tau)), taught=taught)
    # The default, as published: no run is taken twice.
    return variants | {"1.0": Variant(settings, taught=taught)}


def rule(name: str, *settings: str) -> Variant:
    """Return a variant that trains on a rule's term alone."""
    return Variant(("loss.terms=[]", f"loss.rule={name}", *settings))


CONTRASTIVE = Variant(("loss.terms=[contrastive]",))
PUBLISHED = Variant()
SHARP = soft(0.3)
STRONG = (*weights(1, 5), *SHARP)

# Lines of the figure: experiments whose variants are temperatures.
CURVES = {
    "CUSA, published weights": temperatures(),
    "CUSA, alpha 1, beta 5": temperatures(*weights(1, 5)),
    "CUSA, alpha 1, beta 5, image labels": temperatures(*weights(1, 5), taught="image twice"),
    "xclr": {str(tau): rule("xclr", f"loss.xclr.tau={tau}") for tau in TEMPERATURES},
}

EXPERIMENTS: dict[str, dict[str, Variant]] = {
    "losses": {
        "contrastive": CONTRASTIVE,
        "CSA": Variant(("loss.terms=[contrastive, csa]",)),
        "USA": Variant(("loss.terms=[contrastive, usa]",)),
        "CUSA as published": PUBLISHED,
    },
    # The adapter learns the training pairs by heart: fewer epochs, or less of a student.
    "contrastive": {
        "2 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=2")),
        "4 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=4")),
        "dropout 0.5": Variant((*CONTRASTIVE.settings, "student.dropout=0.5")),
        "tau 0.1": Variant((*CONTRASTIVE.settings, "loss.tau.init=0.1", "loss.tau.min=0.1")),
    },
    **CURVES,
    "temperature by modality": {
        "image 0.3, text 1.0": Variant(soft(0.3, 1.0)),
        "image 1.0, text 0.3": Variant(soft(1.0, 0.3)),
        "image 0.2, text 0.3": Variant(soft(0.2, 0.3)),
        "image 0.3, text 0.2": Variant(soft(0.3, 0.2)),
    },
    "weights": {
        "alpha 0.1, beta 0.5": Variant(SHARP),
        "alpha 1, beta 0.5": Variant((*SHARP, *weights(1, 0.5))),
        "alpha 10, beta 0.5": Variant((*SHARP, *weights(10, 0.5))),
        "alpha 0.1, beta 5": Variant((*SHARP, *weights(0.1, 5))),
        "alpha 1, beta 5": Variant(STRONG),
        "alpha 10, beta 10": Variant((*SHARP, *weights(10, 10))),
    },
    # For B = 128: the published weights relative to InfoNCE, and a tenth of them.
    "infonce": {
        "alpha 12.8, beta 64": Variant(("loss.contrastive_scaling=infonce", *weights(12.8, 64))),
        "alpha 1.28, beta 6.4": Variant(("loss.contrastive_scaling=infonce", *weights(1.28, 6.4))),
        "alpha 0.1, beta 0.5": Variant(("loss.contrastive_scaling=infonce",)),
    },
    "controls": {labels: Variant(STRONG, labels) for labels in LABELS},
    "teachers": {
        **{taught: Variant(STRONG, taught=taught) for taught in TAUGHT},
        "mpnet": Variant((*STRONG, "data.text_teacher=mpnet")),
        "minilm and mpnet": Variant((*STRONG, "data.text_teacher=[minilm, mpnet]")),
    },
    "image labels": {
        **{labels: Variant(STRONG, labels, "image") for labels in LABELS},
        "temperature 0.2": Variant((*weights(1, 5), *soft(0.2)), taught="image"),
        "temperature 0.5": Variant((*weights(1, 5), *soft(0.5)), taught="image"),
        "published weights": Variant(SHARP, taught="image"),
        "alpha 10, beta 5": Variant((*weights(10, 5), *SHARP), taught="image"),
        "CSA alone": Variant((*STRONG, "loss.terms=[contrastive, csa]"), taught="image"),
        "USA alone": Variant((*STRONG, "loss.terms=[contrastive, usa]"), taught="image"),
    },
    "image labels, both directions": {
        **{labels: Variant(STRONG, labels, "image twice") for labels in LABELS},
        "alpha 10, beta 5": Variant((*weights(10, 5), *SHARP), taught="image twice"),
        "alpha 1, beta 0.5": Variant((*weights(1, 0.5), *SHARP), taught="image twice"),
    },
    "sources": {
        "each": Variant(STRONG),
        "image": Variant((*STRONG, "loss.soft_label_source=image")),
        "image, no USA": Variant(
            (*STRONG, "loss.soft_label_source=image", "loss.terms=[contrastive, csa]")
        ),
        "add": Variant((*STRONG, "loss.soft_label_source=add")),
        "add, temperature 0.2": Variant((*weights(1, 5), *soft(0.2), "loss.soft_label_source=add")),
        "dot, temperature 0.2": Variant((*weights(1, 5), *soft(0.2), "loss.soft_label_source=dot")),
    },
    "other rules": {
        "cwcl": rule("cwcl"),
        "cwcl, top 8": rule("cwcl", "loss.top_k=8"),
        "guide, text, margin 0.1": rule("guide"),
        "guide, text, margin 0.3": rule("guide", "loss.guide.margin=0.3"),
        "guide, either, margin 0.1": rule("guide", "loss.guide.teacher=either"),
        "self-guide, margin 0.1": rule("self-guide", "loss.self_guide.margin=0.1"),
        "self-guide, margin -0.1": rule("self-guide", "loss.self_guide.margin=-0.1"),
    },
    "top k": {f"top {k}": Variant((*STRONG, f"loss.top_k={k}")) for k in (4, 16, 64)},
    "orders": {
        **{
            order: Variant(order=order)
            for order in (SHUFFLED, "together 2", "together 5", "in turn 240", "in turn 960")
        },
        "in turn 240, temperature 0.3, alpha 1, beta 5": Variant(STRONG, order="in turn 240"),
    },
    "finals": {
        "contrastive": CONTRASTIVE,
        "contrastive, 4 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=4")),
        "CUSA as published": PUBLISHED,
        "temperature 0.3, alpha 1, beta 5": Variant(STRONG),
        "the same, image labels in CSA": Variant((*STRONG, "loss.soft_label_source=image")),
    },
}


class Results:
    """The rows of a results file, which is written whenever a row is added.

    Attributes:
        rows: One per run.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._facts = {"machine": machine()}
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if "runs" not in content:
                raise click.UsageError(f"{path} is no results of this script; name another --out")
            self.rows = content.pop("runs")
            self._facts = content

    def find(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        """Return the row of a run with these facts."""
        for row in self.rows:
            if all(row[name] == value for name, value in facts.items()):
                return row
        return None

    def add(self, row: dict[str, Any]) -> None:
        """Add a run's row, and write the file: a line for each run."""
        self.rows.append(row)
        if self._path is None:
            return
        facts = json.dumps(self._facts)
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        new = self._path.with_suffix(".new")
        new.write_text(f'{facts[:-1]}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")
        new.replace(self._path)


def common_settings(
    image_encoder: str, text_encoder: str, epochs: int, more: tuple[str, ...]
) -> list[str]:
    """Return the settings that all runs of a command share."""
    return [
        f"student.image_encoder={image_encoder}",
        f"student.text_encoder={text_encoder}",
        f"data.image_teacher={image_encoder}",
        f"data.text_teacher={text_encoder}",
        f"train.epochs={epochs}",
        *more,
    ]


def planned(
    experiments: tuple[str, ...], only: tuple[str, ...], seeds: int
) -> Iterator[tuple[str, str, Variant, int]]:
    """Yield experiment, name, variant and seed of the runs, all variants of a seed first."""
    names = {name for experiment in experiments for name in EXPERIMENTS[experiment]}
    unknown = set(only) - names
    if unknown:
        raise click.UsageError(f"--only {min(unknown)}: no variant of these experiments")
    for experiment in experiments:
        for seed in range(seeds):
            for name, variant in EXPERIMENTS[experiment].items():
                if not only or name in only:
                    yield experiment, name, variant, seed


@click.command()
@click.argument("store", type=click.Path(path_type=Path, exists=True))
@click.option("--experiments", multiple=True, type=click.Choice(list(EXPERIMENTS)))
@click.option("--only", multiple=True, help="Names of variants; without it, all of them.")
@click.option("--seeds", default=1)
@click.option("--epochs", default=15)
@click.option("--split", default="val", help="What is measured; test is for finals.")
@click.option(
    "--judgements", type=click.Path(path_type=Path, exists=True), help="People's, of that split."
)
@click.option("--image-encoder", default="efficientnet-lite0", help="Image encoder and teacher.")
@click.option("--text-encoder", default="minilm", help="Text encoder and teacher.")
@click.option("--set", "more", multiple=True, metavar="NAME=VALUE", help="A setting of all runs.")
@click.option("--figure", type=click.Path(path_type=Path), help="RSUM over temperature, as SVG.")
@click.option("--out", type=click.Path(path_type=Path), help="File of the runs, kept up to date.")
def main(
    store: Path,
    experiments: tuple[str, ...],
    only: tuple[str, ...],
    seeds: int,
    epochs: int,
    split: str,
    judgements: Path | None,
    image_encoder: str,
    text_encoder: str,
    more: tuple[str, ...],
    figure: Path | None,
    out: Path | None,
) -> None:
    """Train and measure the experiments on STORE, and print a table of each."""
    quiet_libraries()
    common = common_settings(image_encoder, text_encoder, epochs, more)
    settings = merge({"data": {"embeddings": str(store)}}, parse_settings(common))
    judged = read_judgements(judgements) if judgements is not None else None
    study = Study(EmbeddingStore(store), settings, split, judged)
    results = Results(out)
    where = {"data_set": study.store.dataset, "split": split, "common": common}
    for experiment, name, variant, seed in planned(experiments, only, seeds):
        facts = {**where, **variant.facts(), "seed": seed}
        if results.find(facts) is None:
            row = facts | study.run(variant, seed)
            results.add(row)
            click.echo(f"{experiment}: {name}, seed {seed}: RSUM {row['figures']['rsum']:.1f}")
    for experiment, variants in EXPERIMENTS.items():
        table = experiment_table(experiment, variants, where, results.rows)
        if table.row_count:
            Console(width=200).print(table)
    if figure is not None:
        figure.write_text(temperature_chart(CURVES, where, results.rows), encoding="utf-8")


if __name__ == "__main__":
    main()

r"""The study: which settings of the soft labels help, and which of it is the teachers' knowledge.

    python benchmarks/flickr8k.py runs/f8k.h5 --experiments losses --out results.json
    python benchmarks/flickr8k.py runs/f8k.h5 --experiments finals --split test --seeds 5 \
        --judgements CrowdFlowerAnnotations.txt --out results.json

Adapters are trained on split train of a store that cusa-precompute made of Flickr8k, with teachers
efficientnet-lite0, minilm and mpnet. Settings are chosen on val, one row a run: the best epoch by
val, as cusa-train keeps it. Only ``finals`` and ``last of 15 epochs`` are for split test. Figures
are written after each run; the same command goes on after a kill, and runs that the file has are
not repeated, whichever experiment they are in. Without --experiments, the tables and the figure of
the file are made again. Cross-modal teachers that the study makes itself are added to the store
once: use a copy of it for other common settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cusa.cli.console import POSITIVE, one_line_errors, quiet_libraries
from cusa.eval.evaluators.judgements.data import read_judgements
from cusa.train.config_building import merge, parse_settings

from study_experiments import CURVES, EPOCHS, EXPERIMENTS, LEVELS
from study_options import study_options
from study_runs import Study, Variant, has_facts
from study_tables import experiment_table, temperature_chart
from study_teachers import add_missing_teachers
from study_variants import TEACHERS
from timing import machine

SMOKE = (
    "{store} --image-encoder vision --text-encoder words "
    "--experiments controls --experiments orders --epochs 1 --set train.batch_size=8",
    "{store} --image-encoder vision --text-encoder words --experiments losses --split test "
    "--judgements {judgements} --seeds 2 --epochs 1 --set train.batch_size=8 --set "
    "train.precision=bf16",
)


Experiments = dict[str, dict[str, Variant]]


class Results:
    """The rows of a results file, which is written whenever a row is added.

    Attributes:
        rows: One per run.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._facts = {"machine": machine()}
        self.rows: list[dict[str, Any]] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read(path)

    def has(self, facts: dict[str, Any], by_people: bool) -> bool:
        """Return whether a run with these facts has been measured, by people's judgements, too."""
        figure = "spearman" if by_people else "rsum"
        return any(has_facts(row, facts) and figure in row["figures"] for row in self.rows)

    def add(self, facts: dict[str, Any], measured: dict[str, Any]) -> None:
        """Add a run's row in place of one with the same facts, and write a line for each run."""
        if self._path is not None:
            # Another process may have added some since.
            self._read(self._path)
        row = facts | measured
        if self._facts.get("machine") != machine():
            row["machine"] = machine()
        others = [other for other in self.rows if not has_facts(other, facts)]
        self.rows = [*others, row]
        if self._path is None:
            return
        facts = json.dumps(self._facts)
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        new = self._path.with_suffix(".new")
        new.write_text(f'{facts[:-1]}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")
        new.replace(self._path)

    def _read(self, path: Path) -> None:
        if path.exists():
            self._facts = _read_results(path)
            self.rows = self._facts.pop("runs")


def _read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "runs" not in content:
        raise click.UsageError(f"{path} is no results of this script; name another --out")
    return content


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


def chosen_variants(experiments: Iterable[str], only: tuple[str, ...]) -> Experiments:
    """Return the variants of experiments that ``only`` names, or all of them."""
    names = {name for experiment in experiments for name in EXPERIMENTS[experiment]}
    unknown = set(only) - names
    if unknown:
        raise click.UsageError(f"--only {min(unknown)}: no variant of these experiments")
    chosen: Experiments = {}
    for experiment in experiments:
        variants = EXPERIMENTS[experiment]
        chosen[experiment] = {name: variants[name] for name in variants if name in (only or names)}
    return chosen


def planned(experiments: Experiments, seeds: int) -> Iterator[tuple[str, str, Variant, int]]:
    """Yield experiment, name, variant and seed of the runs, all variants of a seed first."""
    for experiment, variants in experiments.items():
        for seed in range(seeds):
            for name, variant in variants.items():
                yield experiment, name, variant, seed


@click.command()
@study_options
@click.option("--experiments", multiple=True, type=click.Choice(list(EXPERIMENTS)))
@click.option(
    "--only", multiple=True, help="Names of variants; differences are from the first of them."
)
@click.option("--epochs", type=POSITIVE, default=EPOCHS)
@click.option("--image-encoder", default="efficientnet-lite0", help="Image encoder and teacher.")
@click.option("--text-encoder", default="minilm", help="Text encoder and teacher.")
@click.option("--figure", type=click.Path(path_type=Path), help="RSUM over temperature, as SVG.")
@one_line_errors
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
    study = Study(store, settings, split, judged)
    results = Results(out)
    where = {"data_set": study.store.dataset, "split": split, "common": common}
    chosen = chosen_variants(experiments, only)
    for experiment, name, variant, seed in planned(chosen, seeds):
        facts = {**where, **variant.facts(), "seed": seed}
        if not results.has(facts, judged is not None):
            add_missing_teachers(study, variant.cross_teachers, TEACHERS)
            measured = study.run(variant, seed)
            results.add(facts, measured)
            rsum = measured["figures"]["rsum"]
            click.echo(f"{experiment}: {name}, seed {seed}: RSUM {rsum:.1f}")
    for experiment, variants in (chosen or EXPERIMENTS).items():
        table = experiment_table(experiment, variants, where, results.rows)
        if table.row_count:
            Console(width=220).print(table)
    if figure is not None:
        chart = temperature_chart(CURVES, LEVELS, where, results.rows)
        figure.write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()

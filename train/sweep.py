"""A grid of runs: which there are, and what came of them."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError, RunError
from cusa.data.files import atomic_file
from cusa.data.store.schema import file_name
from cusa.train.config import merge, parse_settings
from cusa.train.loss.config import TERMS
from cusa.train.saving.run_dir import METRICS_FILE, load_run, read_metrics

# Settings that a grid may name as the command line does.
SHORT = {
    "loss": "loss.terms",
    "seed": "train.seed",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "student": "student.name",
    "init": "student.init",
    "image_teacher": "data.image_teacher",
    "text_teacher": "data.text_teacher",
    "image_encoder": "student.image_encoder",
    "text_encoder": "student.text_encoder",
}
_SCORES = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
_SEED = "seed"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        values: Its value of each axis, as text.
        settings: The same as nested settings.
    """

    values: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return "_".join(f"{axis}-{file_name(value)}" for axis, value in self.values.items())


def parse_grid(axes: Sequence[str]) -> list[Cell]:
    """``["loss=contrastive,cusa", "seed=0,1,2"]`` as runs, the last axis changing fastest.

    Raises:
        CusaError: If an axis is not ``NAME=VALUE,VALUE,...``, is there twice, or its name is no
            setting.
    """
    grid: dict[str, list[str]] = {}
    for axis in axes:
        name, equals, values = axis.partition("=")
        name = name.replace("-", "_") if "." not in name else name
        if not equals or not all(values.split(",")):
            expected = "NAME=VALUE,VALUE,..., e.g. loss=contrastive,cusa seed=0,1,2"
            raise CusaError(f"--sweep {axis}: expected {expected}")
        if name not in SHORT and "." not in name:
            legal = f"{', '.join(SHORT)}, or a setting such as loss.alpha"
            raise CusaError(f"--sweep {axis}: unknown name; legal: {legal}")
        if SHORT.get(name, name) in {SHORT.get(n, n) for n in grid}:
            raise CusaError(f"--sweep {axis}: this setting is there twice")
        if name == "train.device":
            raise CusaError(f"--sweep {axis}: all runs of a grid are on one device; pass --device")
        grid[name] = values.split(",")
    cells = [
        Cell(v, _settings(v))
        for v in (dict(zip(grid, c, strict=True)) for c in itertools.product(*grid.values()))
    ]
    if any(cell.settings == other.settings for cell, other in itertools.combinations(cells, 2)):
        raise CusaError("--sweep: a value is there twice")
    if len({cell.name for cell in cells}) < len(cells):
        raise CusaError(
            "--sweep: two of its values would share a folder; name them more differently"
        )
    return cells


def _settings(values: Mapping[str, str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if name == "loss":
            if value not in TERMS:
                raise CusaError(f"--sweep loss={value}: legal are {', '.join(TERMS)}")
            nested = merge(nested, {"loss": {"terms": TERMS[value]}})
        else:
            nested = merge(nested, parse_settings([f"{SHORT.get(name, name)}={value}"]))
    return nested


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        values: What they share.
        n: How many they are.
        mean: Mean of each score over them, in percent, by ``best`` and ``last`` epoch; ``None``
            without validation.
        std: Sample standard deviation; ``None`` of one run.
    """

    values: Mapping[str, str]
    n: int
    mean: Mapping[str, Mapping[str, float]] | None
    std: Mapping[str, Mapping[str, float]] | None


def summarize(folder: Path, cells: Sequence[Cell]) -> list[Row]:
    """Summarise a grid's validation scores over seeds; writes ``sweep.json`` and ``sweep.md``, too.

    Args:
        folder: Where the runs lie.
        cells: The runs, finished.
    """
    found = [(cell, _scores(folder / cell.name)) for cell in cells]
    rows: list[Row] = []
    for key, group in itertools.groupby(sorted(found, key=_without_seed), key=_without_seed):
        scores = [run_scores for _, run_scores in group]
        measured = [run_scores for run_scores in scores if run_scores is not None]
        if len(measured) < len(scores):
            rows.append(Row(dict(key), len(scores), None, None))
            continue
        mean, std = _by_epoch(_mean, measured), _by_epoch(_deviation, measured)
        rows.append(Row(dict(key), len(scores), mean, std if len(scores) > 1 else None))
    order = [_without_seed((cell, {})) for cell in cells]
    rows.sort(key=lambda row: order.index(tuple(row.values.items())))
    runs = [{"run": cell.name, **cell.values, "val": scores} for cell, scores in found]
    table = [{"values": r.values, "n": r.n, "mean": r.mean, "std": r.std} for r in rows]
    for name, text in {
        "sweep.json": json.dumps({"runs": runs, "table": table}, indent=2) + "\n",
        "sweep.md": to_markdown(rows),
    }.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """Format the validation recalls, mean ± deviation, at the best epoch; RSUM at the last, too."""
    axes = list(rows[0].values)
    recalls = [score.replace("_r", " R@") for score in _SCORES[:-1]]
    recalls += ["RSUM, best epoch", "RSUM, last epoch"]
    head = [*axes, "runs", *(recalls if validated(rows) else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [*row.values.values(), str(row.n), *figures(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def validated(rows: Sequence[Row]) -> bool:
    """Whether the runs had a validation split."""
    return any(row.mean is not None for row in rows)


def figures(row: Row) -> list[str]:
    """Format a row's scores at the best epoch, and RSUM at the last; none without validation."""
    if row.mean is None:
        return []
    texts = []
    for epoch, score in [*(("best", score) for score in _SCORES), ("last", "rsum")]:
        deviation = f" ± {row.std[epoch][score]:.1f}" if row.std else ""
        texts.append(f"{row.mean[epoch][score]:.1f}{deviation}")
    return texts


def _without_seed(item: tuple[Cell, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (axis, value) for axis, value in item[0].values.items() if axis not in (_SEED, SHORT[_SEED])
    )


def _scores(run_dir: Path) -> dict[str, dict[str, float]] | None:
    """Read a run's validation scores by ``best`` and ``last`` epoch; ``None`` without such a split.

    Raises:
        RunError: If they are not in its log.
    """
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "val"]
    if not lines and load_run(run_dir)[0].data.val_split is None:
        return None
    best_lines = [line for line in lines if line["best"]]
    try:
        best, last = best_lines[-1], lines[-1]
        return {"best": {s: best[s] for s in _SCORES}, "last": {s: last[s] for s in _SCORES}}
    except (IndexError, KeyError):
        path = run_dir / METRICS_FILE
        remedy = "move the run away and train again"
        message = f"{path} lacks the scores of the validation split; {remedy}"
        raise RunError(message, path=path) from None


def _by_epoch(
    function: Callable[[list[float]], float], runs: Sequence[Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, float]]:
    """A function of each score over runs, by epoch."""
    table: dict[str, dict[str, float]] = {}
    for epoch in ("best", "last"):
        table[epoch] = {score: function([run[epoch][score] for run in runs]) for score in _SCORES}
    return table


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0

"""A grid of runs: its cells, and a summary of their scores."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cusa.data.errors import RunError, SettingError
from cusa.data.files import atomic_file
from cusa.data.store.schema import file_name
from cusa.train.config_building import SHORT, merge, nest, parse_settings
from cusa.train.loss.config import TERMS
from cusa.train.saving.run_dir import METRICS_FILE, load_run, read_metrics

_SCORES = (
    "i2t_r1",
    "i2t_r5",
    "i2t_r10",
    "t2i_r1",
    "t2i_r5",
    "t2i_r10",
    "rsum",
)
# A comma that separates values of an axis, and not those of a list, [image,text].
_COMMA = re.compile(r",(?![^\[\]]*\])")
_Scores = dict[str, dict[str, float]]  # by student ("best" or "last"), then by name
_Values = tuple[tuple[str, str], ...]  # by axis


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        values: Its values by axis, as text.
        settings: Its values as nested settings.
    """

    values: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        axis_names = []
        for axis, value in self.values.items():
            without_brackets = value.strip("[]") or value
            axis_names.append(f"{axis}-{file_name(without_brackets)}")
        return "_".join(axis_names)

    @property
    def without_seed(self) -> _Values:
        """Return its values without the seed: runs that differ only in their seed share them."""
        values = dict(self.values)
        for seed_name in ("seed", SHORT["seed"]):
            values.pop(seed_name, None)
        return tuple(values.items())


def parse_grid(axes: Sequence[str]) -> list[Cell]:
    """Read ``["loss=contrastive,cusa", "seed=0,1,2"]`` as runs, the last axis changing fastest.

    Args:
        axes: Axes of the grid, each ``NAME=VALUE,VALUE,...``.

    Raises:
        SettingError: If an axis has another form, a name is not a setting, an axis or a value
            occurs twice, or two runs would have the same folder.
    """
    grid: dict[str, list[str]] = {}
    full_names = set()
    for axis in axes:
        name, values = _parse_axis(axis)
        full_name = SHORT.get(name, name)
        if full_name in full_names:
            raise SettingError(
                f"--sweep {axis}: this setting is given twice; give all its values in one axis",
                name="sweep",
            )
        full_names.add(full_name)
        grid[name] = values

    cells = []
    for combination in itertools.product(*grid.values()):
        axis_values = dict(zip(grid, combination, strict=True))
        cells.append(Cell(axis_values, _nested_settings(axis_values)))
    _refuse_like_cells(cells)
    return cells


def _parse_axis(axis: str) -> tuple[str, list[str]]:
    """Return the name and the values of an axis."""
    name, equals, values_text = axis.partition("=")
    values = _COMMA.split(values_text)
    if not equals or not all(values):
        raise SettingError(
            f"--sweep {axis}: expected NAME=VALUE,VALUE,..., e.g. loss=contrastive,cusa seed=0,1,2",
            name="sweep",
        )
    is_full_name = "." in name
    if not is_full_name:
        name = name.replace("-", "_")
    if not is_full_name and name not in SHORT:
        raise SettingError(
            f"--sweep {axis}: unknown name; legal: {', '.join(SHORT)}, or a setting such as "
            "loss.alpha",
            name="sweep",
        )
    if name == "train.device":
        raise SettingError(
            f"--sweep {axis}: all runs of a grid are on one device; pass --device", name="sweep"
        )
    return name, values


def _refuse_like_cells(cells: Sequence[Cell]) -> None:
    """Refuse cells that have the same settings or the same folder."""
    for first_cell, second_cell in itertools.combinations(cells, 2):
        if first_cell.settings == second_cell.settings:
            raise SettingError(
                "--sweep: a value is given twice; give each value of an axis once", name="sweep"
            )
    folder_names = {cell.name for cell in cells}
    if len(folder_names) < len(cells):
        raise SettingError(
            "--sweep: two runs would have the same folder, whose name keeps only letters, digits "
            "and . _ - of a value; give values that differ in those",
            name="sweep",
        )


def _nested_settings(axis_values: Mapping[str, str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in axis_values.items():
        if name == "loss" and value not in TERMS:
            raise SettingError(f"--sweep loss={value}: legal are {', '.join(TERMS)}", name="sweep")
        if name == "loss":
            setting = nest("loss.terms", TERMS[value])
        else:
            full_name = SHORT.get(name, name)
            setting = parse_settings([f"{full_name}={value}"])
        nested = merge(nested, setting)
    return nested


@dataclass(frozen=True)
class Row:
    """A summary of the runs that differ only in their seed.

    Attributes:
        values: The values that they share, by axis.
        n: The number of runs.
        mean: Mean of each score in percent, by student (``"best"`` or ``"last"``) and name;
            ``None`` without validation.
        std: Sample standard deviations likewise; ``None`` for one run or without validation.
    """

    values: Mapping[str, str]
    n: int
    mean: _Scores | None
    std: _Scores | None


def summarize(folder: Path, cells: Sequence[Cell]) -> list[Row]:
    """Summarise a grid's validation scores over seeds, and write ``sweep.json`` and ``sweep.md``.

    Args:
        folder: The folder of the runs.
        cells: The runs, all of them finished.

    Raises:
        RunError: If a run lacks scores of the validation split.
    """
    runs = []
    scores_by_values: dict[_Values, list[_Scores | None]] = {}
    for cell in cells:
        scores = _read_scores(folder / cell.name)
        runs.append({"run": cell.name, **cell.values, "val": scores})
        scores_of_row = scores_by_values.setdefault(cell.without_seed, [])
        scores_of_row.append(scores)

    rows = []
    for shared_values, run_scores in scores_by_values.items():
        rows.append(_summary_row(dict(shared_values), run_scores))
    table = [asdict(row) for row in rows]
    report_json = json.dumps({"runs": runs, "table": table}, indent=2)
    _write_text(folder / "sweep.json", f"{report_json}\n")
    _write_text(folder / "sweep.md", to_markdown(rows))
    return rows


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _summary_row(shared_values: Mapping[str, str], run_scores: Sequence[_Scores | None]) -> Row:
    n_runs = len(run_scores)
    measured_scores = [scores for scores in run_scores if scores is not None]
    mean = std = None
    if len(measured_scores) == n_runs:
        mean = _by_student(statistics.fmean, measured_scores)
        if n_runs > 1:
            std = _by_student(statistics.stdev, measured_scores)
    return Row(shared_values, n_runs, mean, std)


def to_markdown(rows: Sequence[Row]) -> str:
    """Format the best students' scores, and RSUM at the end, as a Markdown table."""
    columns = [*rows[0].values, "runs"]
    if validated(rows):
        recalls = _SCORES[:-1]
        columns += [recall.replace("_r", " R@") for recall in recalls]
        columns += ["RSUM, best student", "RSUM, at the end"]
    rule = "|" + "---|" * len(columns)
    lines = [_markdown_line(columns), rule]
    for row in rows:
        cells = [*row.values.values(), str(row.n), *figures(row)]
        lines.append(_markdown_line(cells))
    return "\n".join(lines) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def validated(rows: Sequence[Row]) -> bool:
    """Return whether the runs had a validation split."""
    return any(row.mean is not None for row in rows)


def figures(row: Row) -> list[str]:
    """Format a row's scores of the best student, then RSUM at the end; empty without validation."""
    if row.mean is None:
        return []
    columns = [("best", score) for score in _SCORES]
    columns.append(("last", "rsum"))
    texts = []
    for student, score in columns:
        text = f"{row.mean[student][score]:.1f}"
        if row.std:
            text += f" ± {row.std[student][score]:.1f}"
        texts.append(text)
    return texts


def _read_scores(run_dir: Path) -> _Scores | None:
    """Read a run's best and its last scores; ``None`` without a validation split."""
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "val"]
    if not lines:
        config, _ = load_run(run_dir)
        if config.data.val_split is None:
            return None
    best_lines = [line for line in lines if line["best"]]
    try:
        return {
            "best": {score: best_lines[-1][score] for score in _SCORES},
            "last": {score: lines[-1][score] for score in _SCORES},
        }
    except (IndexError, KeyError):
        path = run_dir / METRICS_FILE
        raise RunError(
            f"{path} lacks the scores of the validation split; move the run away and train again",
            path=path,
        ) from None


def _by_student(
    statistic: Callable[[list[float]], float],
    run_scores: Sequence[_Scores],
) -> _Scores:
    """Compute a statistic of each score over runs, for the best and the last student."""
    by_student: _Scores = {}
    for student in ("best", "last"):
        by_student[student] = {}
        for score in _SCORES:
            values = [scores[student][score] for scores in run_scores]
            by_student[student][score] = statistic(values)
    return by_student

"""The evaluation as one HTML page that opens anywhere: tables, learning curves, and queries with their hits."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from cusa.eval.gallery import GalleryQuery
from cusa.eval.page import write_page

MOST_POINTS = 300  # of a curve; more are averaged in blocks

# Each has a contrast of at least 3 on the page's light and on its dark background.
COLORS = ("#2f7fd6", "#d9660f", "#16946b", "#b05bc4", "#d6456b", "#85801f", "#2191a3", "#8b7365")
DASHES = ("solid", "dashed", "dotted", "dashdot")

TASKS = {"i2t": "Image → caption", "t2i": "Caption → image", "t2t": "Caption → caption", "i2i": "Image → image"}
LOSSES = {
    "loss": "Total loss",
    "contrastive": "Contrastive",
    "csa": "CSA: cross-modal soft labels",
    "usa": "USA: uni-modal soft labels",
}

# A run's position, and its x and y, float64 [n].
Curve = tuple[int, np.ndarray, np.ndarray]

# Text and axes are drawn in this colour, which then becomes the page's own text colour, light or dark.
_INK = "#010203"
_STYLE = {
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
    **{"axes.edgecolor": _INK, "axes.labelcolor": _INK, "grid.color": _INK, "grid.alpha": 0.15},
    **{"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False},
    **{"svg.fonttype": "none", "font.size": 10, "axes.formatter.useoffset": False},
}


@dataclass(frozen=True)
class RunReport:
    """What the report shows of one run.

    Attributes:
        name: The run's name.
        metrics: Contents of its ``metrics.json``; figures in percent.
        history: Lines of its ``metrics.jsonl``; may be empty.
        gallery: Queries with their hits; the same queries in the same order for every run, or none.
    """

    name: str
    metrics: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    gallery: tuple[GalleryQuery, ...]


@dataclass(frozen=True)
class Group:
    """Columns under one heading: what they are of (keys into a head's metrics), and labels by metric."""

    title: str
    of: tuple[str, ...]
    labels: Mapping[str, str]


_RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}
_PRECISIONS = {"r1": "R@1", "r_precision": "R-Precision", "map_at_r": "mAP@R"}
CROSS = (
    Group(TASKS["i2t"], ("retrieval", "i2t"), _RECALLS),
    Group(TASKS["t2i"], ("retrieval", "t2i"), _RECALLS),
    Group("Sum", ("retrieval",), {"rsum": "RSUM"}),
)
UNI = (Group(TASKS["t2t"], ("unimodal", "t2t"), _RECALLS), Group(TASKS["i2i"], ("unimodal", "i2i"), _PRECISIONS))
TRUTH = tuple(Group(TASKS[task], ("truth", task), _PRECISIONS) for task in ("i2t", "t2i"))


@dataclass(frozen=True)
class Row:
    """A row: the run's position, the head that answers, and per column the figure and whether it is the best."""

    run: int
    head: str
    cells: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Table:
    """Groups of columns with the numbers of queries and candidates, and rows."""

    groups: tuple[tuple[Group, str], ...]
    rows: tuple[Row, ...]


def write_report(path: Path, runs: Sequence[RunReport]) -> None:
    """Write the page; it holds its pictures and asks for nothing else.

    Args:
        path: The HTML file; replaced as a whole.
        runs: Runs evaluated on the same split, in the order shown.

    Raises:
        ValueError: If there is no run, or the runs' galleries do not show the same queries.
    """
    if not runs:
        raise ValueError("a report needs at least one run; got none")
    gallery = side_by_side(runs)
    items = [item for run in runs for a in run.gallery for item in (a.query, *(hit.item for hit in a.hits))]
    write_page(
        path,
        "report.html.jinja",
        [item.image_path for item in items if item.image_path],
        runs=runs,
        looks=[look(i) for i in range(len(runs))],
        best=[best_epoch(run.history) for run in runs],
        tasks=TASKS,
        cross=make_table(runs, ("cross",), CROSS),
        uni=make_table(runs, ("cross", "uni"), UNI),
        truth=make_table(runs, ("cross",), TRUTH),
        charts=make_charts(runs),
        constants={name: v.pop() for name, v in temperatures(runs).items() if len(v) == 1},
        gallery=gallery,
    )


def make_table(runs: Sequence[RunReport], heads: Sequence[str], groups: Sequence[Group]) -> Table | None:
    """A row per run and head, a column per metric.

    With several runs the best of each column is marked, as printed: what reads alike is marked alike.

    Args:
        runs: The runs.
        heads: Heads that answer, of ``cross`` and ``uni``.
        groups: Columns; those that no run has are left out.

    Returns:
        The table; ``None`` where no column is left.
    """
    known = [g for g in groups if any(_part(run, head, g) for run in runs for head in heads)]
    if not known:
        return None
    keys = [(i, run, head) for i, run in enumerate(runs) for head in heads]
    figures = [[_part(run, head, g).get(metric) for g in known for metric in g.labels] for _, run, head in keys]
    texts = [[f"{f:.1f}" if f is not None else "–" for f in row] for row in figures]
    best = [max((f for f in column if f is not None), default=None) for column in zip(*figures, strict=True)]
    marked = [f"{f:.1f}" if f is not None and len(runs) > 1 else None for f in best]
    rows = [
        Row(i, head, tuple((text, text == top) for text, top in zip(row, marked, strict=True)))
        for (i, _, head), row in zip(keys, texts, strict=True)
    ]
    return Table(tuple((g, _counts(runs, heads, g)) for g in known), tuple(rows))


def make_charts(runs: Sequence[RunReport]) -> dict[str, list[tuple[str, str]]]:
    """Titles and SVG of the curves, by section; a section without data is left out."""
    sections = {
        "RSUM on the validation split, by epoch": ("val", "epoch", {"rsum": "RSUM"}),
        "Loss terms by step, as weighted in the total": ("train", "step", LOSSES),
        "Temperatures by step": ("train", "step", {k: k for k, v in temperatures(runs).items() if len(v) > 1}),
    }
    charts: dict[str, list[tuple[str, str]]] = {}
    for title, (kind, unit, names) in sections.items():
        for key, name in names.items():
            curves = [(i, *points(run.history, kind, unit, key)) for i, run in enumerate(runs)]
            if curves := [(i, x, y) for i, x, y in curves if len(x)]:
                charts.setdefault(title, []).append((name, line_chart(name, unit, curves, mark_best=kind == "val")))
    return charts


def temperatures(runs: Sequence[RunReport]) -> dict[str, set[float]]:
    """All values that each temperature ever has, by its name."""
    lines = [line for run in runs for line in run.history if line["kind"] == "train"]
    names = dict.fromkeys(k for line in lines for k in line if k.startswith("tau"))
    return {name: {line[name] for line in lines if name in line} for name in names}


def points(history: Iterable[Mapping[str, Any]], kind: str, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of ``x`` and ``y``, float64 ``[n]``, in lines that have both; a long train curve in block means."""
    lines = [line for line in history if line["kind"] == kind and x in line and y in line]
    values = np.array([[line[x], line[y]] for line in lines], float).reshape(-1, 2)
    if kind == "train" and len(values) > MOST_POINTS:
        values = np.array([block.mean(axis=0) for block in np.array_split(values, MOST_POINTS)])
    return values[:, 0], values[:, 1]


def line_chart(name: str, x_label: str, curves: Sequence[Curve], *, mark_best: bool = False) -> str:
    """An inline SVG in the page's text colour, the same bytes for the same curves.

    Args:
        name: What y is; different for every chart of a page.
        x_label: What x is.
        curves: At least one, none of them empty; their y on a log scale where it spans a factor of 20.
        mark_best: Mark the highest point of each curve.
    """
    values = np.concatenate([y for _, _, y in curves])
    # The name salts the ids, which are the page's: no two charts share one.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for run, x, y in curves:
            color, dash = look(run)
            axes.plot(x, y, color=color, linestyle=dash, linewidth=1.6, marker="." if len(x) == 1 else None)
            if mark_best:
                axes.plot(x[y.argmax()], y.max(), "o", color=color, markersize=7, clip_on=False)
        if values.min() > 0 and values.max() > 20 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel("log scale")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg[svg.index("<svg") :])  # no one refers to these, and they repeat
    return svg.replace(_INK, "currentColor")


def look(run: int) -> tuple[str, str]:
    """Colour and dash of the run at this position, the same all over the page."""
    return COLORS[run % len(COLORS)], DASHES[run // len(COLORS) % len(DASHES)]


def best_epoch(history: Iterable[Mapping[str, Any]]) -> tuple[int, float] | None:
    """The first epoch of the highest validation RSUM, and that RSUM; ``None`` without validation."""
    epochs, rsums = points(history, "val", "epoch", "rsum")
    return (int(epochs[rsums.argmax()]), float(rsums.max())) if len(rsums) else None


def side_by_side(runs: Sequence[RunReport]) -> dict[str, list[list[tuple[int, GalleryQuery]]]]:
    """Per task its queries, each with the position and the answer of every run that has a gallery.

    Raises:
        ValueError: If the runs do not show the same queries in the same order.
    """
    shown = [(i, run.gallery) for i, run in enumerate(runs) if run.gallery]
    asked = [[(a.task, a.query.kind, a.query.text) for a in gallery] for _, gallery in shown]
    if any(queries != asked[0] for queries in asked):
        names = ", ".join(runs[i].name for i, _ in shown)
        raise ValueError(f"the galleries of {names} do not show the same queries; make them with one seed")
    answers = [[(i, gallery[q]) for i, gallery in shown] for q in range(len(shown[0][1]) if shown else 0)]
    by_task = {task: [a for a in answers if a[0][1].task == task] for task in TASKS}
    return {task: queries for task, queries in by_task.items() if queries}


def _part(run: RunReport, head: str, group: Group) -> Mapping[str, Any]:
    part = run.metrics["heads"].get(head, {})
    for key in group.of:
        part = part.get(key, {})
    return part


def _counts(runs: Sequence[RunReport], heads: Sequence[str], group: Group) -> str:
    parts = (_part(run, head, group) for run in runs for head in heads)
    known = next((p for p in parts if "queries" in p), None)
    return f"{known['queries']:,} queries, {known['candidates']:,} candidates" if known else ""

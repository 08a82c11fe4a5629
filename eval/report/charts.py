"""Curves as SVG inside the page: recall at K, and how a model learned."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

# Points of a curve; more are averaged in blocks.
MOST_POINTS = 300
# Factor between least and greatest y from which the y axis is on a log scale.
LOG_SCALE_FACTOR = 20

# Each has a contrast of at least 3 on the page's light and on its dark background.
COLORS = (
    "#2f7fd6",
    "#d9660f",
    "#16946b",
    "#b05bc4",
    "#d6456b",
    "#85801f",
    "#2191a3",
    "#8b7365",
)
DASHES = ("solid", "dashed", "dotted", "dashdot")

LOSSES = {
    "loss": "Total loss",
    "contrastive": "Contrastive",
    "csa": "CSA: cross-modal soft labels",
    "usa": "USA: uni-modal soft labels",
}

# Lines of metrics.jsonl.
History = Sequence[Mapping[str, Any]]
# A chart's title and its SVG.
Chart = tuple[str, str]

# Text and axes are drawn in this colour, which then becomes the page's own text colour, light or
# dark.
_INK = "#010203"
_STYLE = {
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "svg.fonttype": "none",
    "font.size": 10,
}


@dataclass(frozen=True)
class Curve:
    """The curve of one model.

    Attributes:
        model: The model's position on the page.
        x: float64 ``[n]``.
        y: float64 ``[n]``.
    """

    model: int
    x: np.ndarray
    y: np.ndarray


def learning_charts(histories: Sequence[History]) -> dict[str, list[Chart]]:
    """Draw the learning curves.

    Args:
        histories: Lines of each model's metrics.jsonl.

    Returns:
        Charts by section; a section without data is left out.
    """
    changing_temperatures = {}
    for temperature, values in temperatures(histories).items():
        if len(values) > 1:
            changing_temperatures[temperature] = temperature
    sections = {
        "RSUM on the validation split, by epoch": _learning_section(
            histories, "val", "epoch", {"rsum": "RSUM"}
        ),
        "Loss terms by step, weighted as in the total": _learning_section(
            histories, "train", "step", LOSSES
        ),
        "Temperatures by step": _learning_section(
            histories, "train", "step", changing_temperatures
        ),
    }
    return {title: charts for title, charts in sections.items() if charts}


def _learning_section(
    histories: Sequence[History],
    kind: str,
    unit: str,
    titles: Mapping[str, str],
) -> list[Chart]:
    """Draw a chart of each quantity that a history has.

    Args:
        histories: Lines of each model's metrics.jsonl.
        kind: Lines to draw: ``"train"`` or ``"val"``.
        unit: What x counts: ``"step"`` or ``"epoch"``.
        titles: Titles of the quantities.
    """
    charts = []
    for quantity, title in titles.items():
        curves = []
        for position, history in enumerate(histories):
            curve = Curve(position, *points(history, kind, unit, quantity))
            if len(curve.x):
                curves.append(curve)
        if curves:
            chart_svg = line_chart(title, unit, curves, mark_best=kind == "val")
            charts.append((title, chart_svg))
    return charts


def recall_charts(
    metrics: Sequence[Mapping[str, Any] | None],
    tasks: Mapping[str, str],
) -> list[Chart]:
    """Draw recall at K, a chart per direction with all models.

    Args:
        metrics: Contents of each model's metrics.json, or ``None``.
        tasks: Titles of the directions.
    """
    charts = []
    for task, title in tasks.items():
        curves = []
        for position, content in enumerate(metrics):
            recall_curve = _recall_curve(content or {}, task)
            # A direction without any query has no recall.
            if recall_curve and None not in recall_curve["recall"]:
                cuts = np.array(recall_curve["k"], float)
                recalls = np.array(recall_curve["recall"], float)
                curves.append(Curve(position, cuts, recalls))
        if curves:
            chart_svg = line_chart(f"recall {task}", "K, log scale", curves, log_x=True)
            charts.append((title, chart_svg))
    return charts


def _recall_curve(content: Mapping[str, Any], task: str) -> Mapping[str, Any] | None:
    across_modalities = task in ("i2t", "t2i")
    directions = content.get("retrieval" if across_modalities else "unimodal") or {}
    figures = directions.get(task) or {}
    return figures.get("curve")


def temperatures(histories: Sequence[History]) -> dict[str, set[float]]:
    """Collect all values that each temperature ever has, by its name."""
    values: dict[str, set[float]] = {}
    for history in histories:
        for line in history:
            if line.get("kind") != "train":
                continue
            for quantity, value in line.items():
                if quantity.startswith("tau"):
                    values.setdefault(quantity, set())
                    if _is_number(value):
                        values[quantity].add(value)
    return values


def points(
    history: Iterable[Mapping[str, Any]],
    kind: str,
    x_name: str,
    y_name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Collect two quantities from the lines of a kind that have both.

    Args:
        history: Lines of metrics.jsonl.
        kind: ``"train"`` or ``"val"``.
        x_name: One quantity.
        y_name: The other.

    Returns:
        Their values, float64 ``[n]`` each; a long train curve in block means.
    """
    pairs = []
    for line in history:
        x, y = line.get(x_name), line.get(y_name)
        if line.get("kind") == kind and _is_number(x) and _is_number(y):
            pairs.append([x, y])
    values = np.array(pairs, float).reshape(-1, 2)
    if kind == "train" and len(values) > MOST_POINTS:
        blocks = np.array_split(values, MOST_POINTS)
        values = np.array([block.mean(axis=0) for block in blocks])
    return values[:, 0], values[:, 1]


def _is_number(value: Any) -> bool:
    # In Python, True and False are ints.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def line_chart(
    name: str,
    x_label: str,
    curves: Sequence[Curve],
    *,
    mark_best: bool = False,
    log_x: bool = False,
) -> str:
    """Draw an inline SVG in the page's text colour, the same bytes for the same curves.

    Args:
        name: What y is; different for every chart of a page.
        x_label: What x is.
        curves: At least one, none of them empty; y is on a log scale where it spans a factor of
            ``LOG_SCALE_FACTOR``.
        mark_best: Mark the highest point of each curve.
        log_x: Draw x on a log scale; it is positive.
    """
    # The name salts the ids, which are the page's: no two charts share one.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _draw(axes, curve, mark_best)
        _scale_y(axes, np.concatenate([curve.y for curve in curves]))
        axes.set_xlabel(x_label)
        _scale_x(axes, log_x)
        svg_file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(
            svg_file,
            format="svg",
            transparent=True,
            metadata=no_metadata,
        )
    svg = svg_file.getvalue()
    svg = svg[svg.index("<svg") :]
    # Nothing refers to the groups' ids, and they repeat from chart to chart.
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    return svg.replace(_INK, "currentColor")


def _draw(
    axes: Axes,
    curve: Curve,
    mark_best: bool,
) -> None:
    color, dash = look(curve.model)
    # A point alone has no line to be seen by.
    axes.plot(
        curve.x,
        curve.y,
        color=color,
        linestyle=dash,
        linewidth=1.6,
        marker="." if len(curve.x) == 1 else None,
    )
    if mark_best:
        best_x = curve.x[curve.y.argmax()]
        axes.plot(
            best_x,
            curve.y.max(),
            "o",
            color=color,
            markersize=7,
            clip_on=False,
        )


def _scale_x(axes: Axes, is_log: bool) -> None:
    if not is_log:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scale_y(axes: Axes, values: np.ndarray) -> None:
    if values.min() <= 0 or values.max() <= LOG_SCALE_FACTOR * values.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("log scale")


def look(model: int) -> tuple[str, str]:
    """Choose colour and dash of the model at this position, the same all over the page."""
    color = COLORS[model % len(COLORS)]
    dash = DASHES[model // len(COLORS) % len(DASHES)]
    return color, dash


def best_epoch(history: Iterable[Mapping[str, Any]]) -> tuple[int, float] | None:
    """Find the first epoch of the highest validation RSUM, and that RSUM.

    Returns:
        ``None`` without validation.
    """
    epochs, rsums = points(history, "val", "epoch", "rsum")
    if not len(rsums):
        return None
    best = rsums.argmax()
    return int(epochs[best]), float(rsums[best])

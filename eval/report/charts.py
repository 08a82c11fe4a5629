"""Curves as SVG inside the page: recall at K, and how a model learned."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

MOST_POINTS = 300  # of a curve; more are averaged in blocks

# Each has a contrast of at least 3 on the page's light and on its dark background.
COLORS = ("#2f7fd6", "#d9660f", "#16946b", "#b05bc4", "#d6456b", "#85801f", "#2191a3", "#8b7365")
DASHES = ("solid", "dashed", "dotted", "dashdot")

LOSSES = {
    "loss": "Total loss",
    "contrastive": "Contrastive",
    "csa": "CSA: cross-modal soft labels",
    "usa": "USA: uni-modal soft labels",
}

# A model's position, and its x and y, float64 [n].
Curve = tuple[int, np.ndarray, np.ndarray]
History = Sequence[Mapping[str, Any]]

# Text and axes are drawn in this colour, which then becomes the page's own text colour, light or dark.
_INK = "#010203"
_STYLE = {
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
    **{"axes.edgecolor": _INK, "axes.labelcolor": _INK, "grid.color": _INK, "grid.alpha": 0.15},
    **{"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False},
    **{"svg.fonttype": "none", "font.size": 10, "axes.formatter.useoffset": False},
}


def learning_charts(histories: Sequence[History]) -> dict[str, list[tuple[str, str]]]:
    """Titles and SVG of the learning curves, by section; a section without data is left out.

    Args:
        histories: Lines of each model's metrics.jsonl.
    """
    sections = {
        "RSUM on the validation split, by epoch": ("val", "epoch", {"rsum": "RSUM"}),
        "Loss terms by step, as weighted in the total": ("train", "step", LOSSES),
        "Temperatures by step": (
            "train",
            "step",
            {k: k for k, v in temperatures(histories).items() if len(v) > 1},
        ),
    }
    charts: dict[str, list[tuple[str, str]]] = {}
    for title, (kind, unit, names) in sections.items():
        for key, name in names.items():
            curves = [(i, *points(history, kind, unit, key)) for i, history in enumerate(histories)]
            if curves := [(i, x, y) for i, x, y in curves if len(x)]:
                charts.setdefault(title, []).append(
                    (name, line_chart(name, unit, curves, mark_best=kind == "val"))
                )
    return charts


def recall_charts(
    metrics: Sequence[Mapping[str, Any] | None], tasks: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Titles and SVG of recall at K, a chart per direction with all models.

    Args:
        metrics: Contents of each model's metrics.json, or ``None``.
        tasks: Titles of the directions.
    """
    charts = []
    for task, title in tasks.items():
        curves = []
        for i, content in enumerate(metrics):
            part = (
                (content or {}).get("retrieval" if task in ("i2t", "t2i") else "unimodal") or {}
            ).get(task) or {}
            # A direction without any query has no recall.
            if (curve := part.get("curve")) and None not in curve["recall"]:
                curves.append((i, np.array(curve["k"], float), np.array(curve["recall"], float)))
        if curves:
            charts.append((title, line_chart(f"recall {task}", "K, log scale", curves, log_x=True)))
    return charts


def temperatures(histories: Sequence[History]) -> dict[str, set[float]]:
    """All values that each temperature ever has, by its name."""
    lines = [line for history in histories for line in history if line.get("kind") == "train"]
    names = dict.fromkeys(k for line in lines for k in line if k.startswith("tau"))
    return {name: {line[name] for line in lines if _is_number(line.get(name))} for name in names}


def points(
    history: Iterable[Mapping[str, Any]], kind: str, x: str, y: str
) -> tuple[np.ndarray, np.ndarray]:
    """The values of ``x`` and ``y``, float64 ``[n]``, in lines that have both; a long train curve in block means."""
    lines = [
        m
        for m in history
        if m.get("kind") == kind and _is_number(m.get(x)) and _is_number(m.get(y))
    ]
    values = np.array([[line[x], line[y]] for line in lines], float).reshape(-1, 2)
    if kind == "train" and len(values) > MOST_POINTS:
        values = np.array([block.mean(axis=0) for block in np.array_split(values, MOST_POINTS)])
    return values[:, 0], values[:, 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def line_chart(
    name: str,
    x_label: str,
    curves: Sequence[Curve],
    *,
    mark_best: bool = False,
    log_x: bool = False,
) -> str:
    """An inline SVG in the page's text colour, the same bytes for the same curves.

    Args:
        name: What y is; different for every chart of a page.
        x_label: What x is.
        curves: At least one, none of them empty; their y on a log scale where it spans a factor of 20.
        mark_best: Mark the highest point of each curve.
        log_x: Draw x on a log scale; it is positive.
    """
    values = np.concatenate([y for _, _, y in curves])
    # The name salts the ids, which are the page's: no two charts share one.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for run, x, y in curves:
            color, dash = look(run)
            axes.plot(
                x,
                y,
                color=color,
                linestyle=dash,
                linewidth=1.6,
                marker="." if len(x) == 1 else None,
            )
            if mark_best:
                axes.plot(x[y.argmax()], y.max(), "o", color=color, markersize=7, clip_on=False)
        if values.min() > 0 and values.max() > 20 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel("log scale")
        axes.set_xlabel(x_label)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = re.sub(
        r"<g id=\"[^\"]*\"", "<g", svg[svg.index("<svg") :]
    )  # no one refers to these, and they repeat
    return svg.replace(_INK, "currentColor")


def look(run: int) -> tuple[str, str]:
    """Colour and dash of the run at this position, the same all over the page."""
    return COLORS[run % len(COLORS)], DASHES[run // len(COLORS) % len(DASHES)]


def best_epoch(history: Iterable[Mapping[str, Any]]) -> tuple[int, float] | None:
    """The first epoch of the highest validation RSUM, and that RSUM; ``None`` without validation."""
    epochs, rsums = points(history, "val", "epoch", "rsum")
    return (int(epochs[rsums.argmax()]), float(rsums.max())) if len(rsums) else None

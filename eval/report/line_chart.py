"""Line charts as inline SVG, in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

# Ratio of the greatest to the least y above which the y axis is logarithmic.
LOG_SCALE_FACTOR = 20

# Each has a contrast of at least 3 with both the light and the dark background of the page.
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

# Text and axes are drawn in this colour, which is then replaced by the page's text colour.
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


def line_chart(
    name: str,
    x_label: str,
    curves: Sequence[Curve],
    *,
    mark_best: bool = False,
    log_x: bool = False,
) -> str:
    """Draw a line chart as inline SVG; the same curves give the same bytes.

    Args:
        name: Name of the chart, different for every chart of a page.
        x_label: Label of the x axis.
        curves: At least one curve, none of them empty. The y axis is logarithmic if y is positive
            and spans more than a factor of ``LOG_SCALE_FACTOR``.
        mark_best: Whether to mark the highest point of each curve.
        log_x: Whether the x axis is logarithmic; x must then be positive.
    """
    # All charts share the page's ids, so the name of each salts its own.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _draw(axes, curve, mark_best)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            _format_log_scale(axes.xaxis)
        y_values = np.concatenate([curve.y for curve in curves])
        if y_values.min() > 0 and y_values.max() > LOG_SCALE_FACTOR * y_values.min():
            axes.set_yscale("log")
            _format_log_scale(axes.yaxis)
            axes.set_ylabel("log scale")
        return _inline_svg(figure)


def _inline_svg(figure: Figure) -> str:
    """Return a figure as SVG for a page: without metadata, in the page's own colour."""
    svg_file = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(svg_file, format="svg", transparent=True, metadata=no_metadata)
    _, start, svg = svg_file.getvalue().partition("<svg")
    # The ids of groups repeat from chart to chart, and nothing refers to them.
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", start + svg)
    return svg.replace(_INK, "currentColor")


def _draw(
    axes: Axes,
    curve: Curve,
    mark_best: bool,
) -> None:
    color, dash = curve_style(curve.model)
    # A single point has no line, and needs a marker to be seen.
    marker = "." if len(curve.x) == 1 else None
    axes.plot(curve.x, curve.y, color=color, linestyle=dash, linewidth=1.6, marker=marker)
    if mark_best:
        best = curve.y.argmax()
        axes.plot(curve.x[best], curve.y[best], "o", color=color, markersize=7, clip_on=False)


def _format_log_scale(axis: Axis) -> None:
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def curve_style(model: int) -> tuple[str, str]:
    """Choose the colour and the dash pattern of a model by its position on the page."""
    color = COLORS[model % len(COLORS)]
    dash = DASHES[model // len(COLORS) % len(DASHES)]
    return color, dash

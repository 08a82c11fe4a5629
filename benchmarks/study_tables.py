"""Tables of a study's runs, paired intervals of their differences, and its figure."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from rich.table import Table

from cusa.eval.metrics.bootstrap import interval
from cusa.eval.report.line_chart import COLORS

from study_runs import Variant, has_facts
from timing import mean_and_deviation

Rows = list[dict[str, Any]]
# Temperatures that the figure names.
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
TITLES = {
    "rsum": "RSUM",
    "i2t_r1": "i2t R@1",
    "t2i_r1": "t2i R@1",
    "t2t_r1_cross": "t2t, cross",
    "t2t_r1_uni": "t2t, uni",
    "i2t_r1_people": "i2t R@1, people's",
    "t2i_r1_people": "t2i R@1, people's",
    "spearman": "Spearman with people",
}

# Figures whose differences a table has, with their intervals.
DIFFERENCES = ("rsum", "t2t_r1_cross", "spearman")


def rows_of(variant: Variant, where: Mapping[str, Any], rows: Rows) -> Rows:
    """Return a variant's rows under what all runs share, one for each seed."""
    facts = {**where, **variant.facts()}
    return [row for row in rows if has_facts(row, facts)]


def paired_difference(base: Rows, other: Rows, figure: str) -> tuple[float, list[float]] | None:
    """Return the mean difference over the seeds of both, and its 95 % interval.

    Each sample draws queries, the same for both, and seeds, with replacement.

    Args:
        base: Rows of a variant.
        other: Rows of another.
        figure: Name of the figure.

    Returns:
        ``None`` if they share no seed or have no samples.
    """
    base_by_seed = {row["seed"]: row for row in base}
    values, samples = [], []
    for row in other:
        base_row = base_by_seed.get(row["seed"])
        if base_row is None or figure not in row["samples"] or figure not in base_row["samples"]:
            continue
        values.append(row["figures"][figure] - base_row["figures"][figure])
        pair = row["samples"][figure], base_row["samples"][figure]
        samples.append(np.subtract(*pair))
    if not values:
        return None
    by_seed = np.array(samples)
    shape = by_seed.shape[::-1]
    seeds = np.random.default_rng(0).integers(len(values), size=shape)
    drawn = by_seed[seeds, np.arange(len(seeds))[:, None]].mean(axis=1)
    bounds = interval(drawn)
    assert bounds is not None
    return float(np.mean(values)), bounds


def experiment_table(
    title: str, variants: Mapping[str, Variant], where: Mapping[str, Any], rows: Rows
) -> Table:
    """Return means and deviations over seeds; with samples, differences from the first variant."""
    rows_by_name = {name: rows_of(variant, where, rows) for name, variant in variants.items()}
    measured = [row["figures"] for rows in rows_by_name.values() for row in rows]
    names = [name for name in TITLES if measured and all(name in row for row in measured)]
    titles = [TITLES[name] for name in names]
    resampled = {name for rows in rows_by_name.values() for row in rows for name in row["samples"]}
    compared = [name for name in DIFFERENCES if name in resampled & set(names)]
    titles += [f"{TITLES[name]}, over the first" for name in compared]
    table = Table(title, "seeds", "best epoch", "last, val", *titles)
    base = next(iter(rows_by_name.values()))
    for variant, own_rows in rows_by_name.items():
        if not own_rows:
            continue
        columns = [[row["val_rsum"][-1] for row in own_rows if row.get("val_rsum")]]
        for name in names:
            columns.append([row["figures"][name] for row in own_rows])
        epochs = ", ".join(str(row["best_epoch"]) for row in own_rows if "best_epoch" in row)
        cells = [_cell(values) for values in columns]
        if own_rows is not base:
            cells += [_difference(base, own_rows, name) for name in compared]
        table.add_row(variant, str(len(own_rows)), epochs, *cells)
    return table


def _difference(base: Rows, other: Rows, figure: str) -> str:
    difference = paired_difference(base, other, figure)
    if difference is None:
        return ""
    mean, (low, high) = difference
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return mean_and_deviation(values) if len(values) > 1 else f"{values[0]:.1f}"


def temperature_chart(
    curves: Mapping[str, Mapping[str, Variant]],
    levels: Mapping[str, Variant],
    where: Mapping[str, Any],
    rows: Rows,
) -> str:
    """Draw RSUM over the soft labels' temperature, as SVG.

    Args:
        curves: A line of each: its variants by their temperatures.
        levels: A dashed line of each: variants without a temperature.
        where: What all runs share.
        rows: The runs.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, variants) in enumerate(curves.items()):
        points = []
        for tau, variant in variants.items():
            values = _rsums(variant, where, rows)
            if values:
                points.append((float(tau), np.mean(values)))
        if points:
            line = zip(*sorted(points), strict=True)
            axes.plot(*line, ".-", color=COLORS[number], label=name)
    for number, (name, variant) in enumerate(levels.items(), len(curves)):
        values = _rsums(variant, where, rows)
        if values:
            axes.axhline(np.mean(values), linestyle="--", color=COLORS[number], label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(TICKS)
    axes.set_xlabel("temperature of the soft labels")
    axes.set_ylabel(f"RSUM on {where['data_set']} {where['split']}")
    axes.grid(alpha=0.2)
    if axes.lines:
        figure.legend(loc="outside right upper", frameon=False)
    svg = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text as text, and the same ids each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
        figure.savefig(svg, format="svg", metadata=no_metadata)
    return svg.getvalue()


def _rsums(variant: Variant, where: Mapping[str, Any], rows: Rows) -> list[float]:
    return [row["figures"]["rsum"] for row in rows_of(variant, where, rows)]

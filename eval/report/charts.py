"""Charts as SVG inside the page: recall at K, and learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cusa.eval.report.line_chart import Curve, line_chart

# Most points of a curve; longer curves are averaged in blocks.
MOST_POINTS = 300
LOSSES = {
    "loss": "Total loss",
    "contrastive": "Contrastive",
    "csa": "CSA: cross-modal soft labels",
    "usa": "USA: uni-modal soft labels",
    "rule": "Label rule",
}

# Lines of a run's metrics.jsonl.
History = Sequence[Mapping[str, Any]]
# A chart's title and its SVG.
Chart = tuple[str, str]


def learning_charts(histories: Sequence[History]) -> dict[str, list[Chart]]:
    """Draw the learning curves.

    Args:
        histories: Lines of each model's metrics.jsonl.

    Returns:
        Charts by section; a section without data is left out.
    """
    changing = {}
    for temperature, values in temperatures(histories).items():
        if len(values) > 1:
            changing[temperature] = temperature
    # Runs that validate within epochs count steps.
    validated = [points(history, "val", "epoch", "rsum")[0] for history in histories]
    unit = "epoch" if all(map(_are_whole, validated)) else "step"
    sections = {
        f"RSUM on the validation split, by {unit}": _learning_section(
            histories, "val", unit, {"rsum": "RSUM"}
        ),
        "Loss terms by step, weighted as in the total": _learning_section(
            histories, "train", "step", LOSSES
        ),
        "Temperatures by step": _learning_section(histories, "train", "step", changing),
    }
    return {title: charts for title, charts in sections.items() if charts}


def _learning_section(
    histories: Sequence[History],
    kind: str,
    unit: str,
    titles: Mapping[str, str],
) -> list[Chart]:
    """Draw a chart of each quantity that some history has.

    Args:
        histories: Lines of each model's metrics.jsonl.
        kind: Kind of the lines, ``"train"`` or ``"val"``.
        unit: The quantity on the x axis, ``"epoch"`` or ``"step"``.
        titles: Titles of the quantities on the y axis.
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
    """Draw recall at K of all models, a chart per direction.

    Args:
        metrics: Content of each model's metrics.json; ``None`` for a model without one.
        tasks: Titles of the directions.
    """
    charts = []
    for task, title in tasks.items():
        curves = []
        for position, content in enumerate(metrics):
            recall_curve = _recall_curve(content or {}, task)
            # A direction without any query has no recall.
            if recall_curve and None not in recall_curve["recall"]:
                cuts, recalls = np.array([recall_curve["k"], recall_curve["recall"]], float)
                curves.append(Curve(position, cuts, recalls))
        if curves:
            chart_svg = line_chart(f"recall {task}", "K, log scale", curves, log_x=True)
            charts.append((title, chart_svg))
    return charts


def _recall_curve(
    content: Mapping[str, Any],
    task: str,
) -> Mapping[str, Any] | None:
    across_modalities = task in ("i2t", "t2i")
    directions = content.get("retrieval" if across_modalities else "unimodal") or {}
    figures = directions.get(task) or {}
    return figures.get("curve")


def temperatures(histories: Sequence[History]) -> dict[str, set[float]]:
    """Collect the distinct values of each temperature over all histories, by its name."""
    values: dict[str, set[float]] = {}
    for history in histories:
        for line in history:
            if line.get("kind") != "train":
                continue
            for quantity, value in line.items():
                if quantity.startswith("tau") and _is_number(value):
                    values.setdefault(quantity, set()).add(value)
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
        kind: Kind of the lines, ``"train"`` or ``"val"``.
        x_name: Name of the first quantity.
        y_name: Name of the second quantity.

    Returns:
        Their values, float64 ``[n]`` each; a long training curve is averaged in blocks.
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
    # In Python, bool is a subclass of int.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def best_validation(history: Iterable[Mapping[str, Any]]) -> tuple[str, float] | None:
    """Find the first validation with the highest RSUM.

    Returns:
        When it was, ``"epoch 3"`` or, within an epoch, ``"step 5,000"``, and its RSUM; ``None``
        without validation.
    """
    lines = list(history)
    epochs, rsums = points(lines, "val", "epoch", "rsum")
    if not len(rsums):
        return None
    best = rsums.argmax()
    moment = f"epoch {epochs[best]:.0f}"
    if not _are_whole(epochs):
        steps, _ = points(lines, "val", "step", "rsum")
        moment = f"step {steps[best]:,.0f}"
    return moment, float(rsums[best])


def _are_whole(epochs: np.ndarray) -> bool:
    return bool((epochs == np.floor(epochs)).all())

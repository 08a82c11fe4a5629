"""Tables of the models' results, with the best of each column and the published rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from cusa.eval.report.paired_differences import ComparedFigure, Difference
from cusa.eval.report.tables import (
    NONE,
    Cell,
    Content,
    Figures,
    Group,
    Metric,
    NamedResult,
    Row,
    Table,
    TableSpec,
)

# A column: its group and its metric.
Column = tuple[Group, Metric]
# Key of a row: the model's position, and the head.
RowKey = tuple[int, str]


def make_tables(
    results: Sequence[NamedResult[Content]],
    specs: Iterable[TableSpec[Content]],
    data: str = "",
) -> tuple[Table, ...]:
    """Make the tables, leaving out those for which no model has a figure.

    Args:
        results: The results of each model, in the order of the report.
        specs: Descriptions of the tables.
        data: The data measured, if the tables do not name them.
    """
    tables = []
    for spec in specs:
        if table := make_table(results, spec, data):
            tables.append(table)
    return tuple(tables)


def make_table(
    results: Sequence[NamedResult[Content]],
    spec: TableSpec[Content],
    data: str = "",
) -> Table | None:
    """Make a table with a row per model and head, and a column per metric; published rows are last.

    With several models, the best figure of each column is marked. Published figures do not compete,
    nor does the only figure of a column. Arguments are those of :func:`make_tables`.

    Returns:
        The table; ``None`` if no model has a figure.
    """
    figures = _figures_of_rows(results, spec)
    groups = _groups_with_figures(spec.groups, figures.values())
    columns: list[Column] = []
    for group in groups:
        columns += zip(repeat(group), group.metrics)
    figures = {key: row for key, row in figures.items() if _has_figure([row], columns)}
    if not figures:
        return None

    rows = []
    # A model has no row for a head that it lacks.
    for (position, head), figures_of_row in figures.items():
        compared = _compared_figures(results[position], spec, head)
        rows.append(_row(results[position], position, head, figures_of_row, columns, compared))
    if len(results) > 1:
        rows = _mark_best(rows, columns)
    rows += _published_rows(results, spec, columns)

    headings = []
    for group in groups:
        headings.append((group, _counts_in_words(group, figures.values())))
    return Table(
        title=spec.title,
        rule=spec.rule,
        by_head=len(spec.heads) > 1,
        groups=tuple(headings),
        rows=tuple(rows),
        unit=spec.unit,
        data=data,
        base=_base(results, rows),
    )


def _base(results: Sequence[NamedResult[Any]], rows: Iterable[Row]) -> str:
    """Name the model that the differences of a table are from; empty without differences."""
    for row in rows:
        has_differences = any(cell.difference for cell in row.cells)
        if row.run is not None and has_differences:
            differences = results[row.run].differences
            assert differences is not None, "a difference is of a model that has differences"
            return differences.base
    return ""


def _compared_figures(
    result: NamedResult[Any],
    spec: TableSpec[Any],
    head: str,
) -> Mapping[ComparedFigure, Difference]:
    """Return a model's differences from the first, if this head is the one that is compared."""
    differences = result.differences
    if differences is None:
        return {}
    compared_head = "cross"
    if len(spec.heads) > 1:
        compared_head = differences.uni_head
    return differences.figures if head == compared_head else {}


def _figures_of_rows(
    results: Sequence[NamedResult[Content]],
    spec: TableSpec[Content],
) -> dict[RowKey, Figures]:
    """Return the figures of every model and head that may answer."""
    figures = {}
    for position, result in enumerate(results):
        if result.content is None:
            continue
        by_head = spec.figures_by_head(result.content)
        for head in spec.heads:
            if head in by_head:
                figures[position, head] = by_head[head]
    return figures


def _groups_with_figures(
    groups: Iterable[Group],
    figures_by_row: Collection[Figures],
) -> list[Group]:
    """Leave out the metrics that no row has, and groups without any metric left."""
    groups_with_figures = []
    for group in groups:
        metrics = []
        for metric in group.metrics:
            if _has_figure(figures_by_row, [(group, metric)]):
                metrics.append(metric)
        if metrics:
            groups_with_figures.append(replace(group, metrics=tuple(metrics)))
    return groups_with_figures


def _has_figure(
    figures_by_row: Iterable[Figures],
    columns: Sequence[Column],
) -> bool:
    for row_figures in figures_by_row:
        for group, metric in columns:
            if _at_path(row_figures, group).get(metric.key) is not None:
                return True
    return False


def _at_path(figures: Figures, group: Group) -> Figures:
    for key in group.path:
        figures = figures.get(key) or {}
    return figures


def _row(
    result: NamedResult[Any],
    position: int,
    head: str,
    figures: Figures,
    columns: Iterable[Column],
    compared: Mapping[ComparedFigure, Difference],
) -> Row:
    cells = []
    for group, metric in columns:
        # A missing figure becomes a dash.
        cell = _cell(_at_path(figures, group), metric)
        compared_figure = (group.compared or {}).get(metric.key)
        if compared_figure is not None and compared_figure in compared:
            cell = replace(cell, difference=compared[compared_figure])
        cells.append(cell)
    untrained = head == "uni" and _uni_head_is_untrained(result.content)
    return Row(position, result.name, head, untrained, tuple(cells))


def _uni_head_is_untrained(content: Mapping[str, Any] | None) -> bool:
    """Tell whether a run was trained without USA; models that are not runs have no loss terms."""
    content = content or {}
    loss_terms = content.get("loss_terms") or content.get("model", {}).get("loss_terms")
    return bool(loss_terms) and "usa" not in loss_terms


def _cell(figures: Figures, metric: Metric) -> Cell:
    value = figures.get(metric.key)
    if value is None:
        return Cell(NONE)
    digits = metric.digits
    text = f"{value:,.{digits}f}"
    interval = (figures.get("ci") or {}).get(metric.key)
    if interval is None:
        return Cell(text)
    low, high = interval
    return Cell(text, f"{low:.{digits}f}–{high:.{digits}f}")


def _mark_best(
    rows: Sequence[Row],
    columns: Sequence[Column],
) -> list[Row]:
    """Mark the best figure of each column as printed; equal ones are all marked."""
    best_texts = []
    for number, (_, metric) in enumerate(columns):
        column = [row.cells[number] for row in rows]
        best_texts.append(_best_text(column, metric))

    marked_rows = []
    for row in rows:
        marked_cells = []
        for cell, best_text in zip(row.cells, best_texts, strict=True):
            marked_cells.append(replace(cell, best=cell.text == best_text))
        marked_rows.append(replace(row, cells=tuple(marked_cells)))
    return marked_rows


def _best_text(
    column: Sequence[Cell],
    metric: Metric,
) -> str | None:
    """Return the best printed figure of a column; ``None`` with fewer than two to compare."""
    figures = [cell.text for cell in column if cell.text != NONE]
    if len(figures) < 2 or metric.best == "none":
        return None
    choose = max if metric.best == "highest" else min
    return choose(figures, key=lambda text: float(text.replace(",", "")))


def _published_rows(
    results: Sequence[NamedResult[Content]],
    spec: TableSpec[Content],
    columns: Sequence[Column],
) -> Iterator[Row]:
    """Yield a row for each published result of the same setting as one of the models."""
    published: dict[tuple[str, str], Figures] = {}
    for result in results:
        if result.content is None:
            continue
        paper_row = spec.published_row(result.content)
        if paper_row:
            published[paper_row["host"], paper_row["method"]] = paper_row

    for (host, method), paper_row in published.items():
        cells = []
        for group, metric in columns:
            paper_key = (group.paper_keys or {}).get(metric.key, "")
            paper_figure = paper_row.get(paper_key)
            # Published figures have one decimal place.
            cells.append(Cell(NONE if paper_figure is None else f"{paper_figure:.1f}"))
        if set(cells) != {Cell(NONE)}:
            yield Row(None, f"paper: {host}, {method}", "", False, tuple(cells))


def _counts_in_words(
    group: Group,
    figures_by_row: Iterable[Figures],
) -> str:
    """Return the rows' numbers of queries and candidates in words, each combination once."""
    different_counts: dict[str, None] = {}
    for row_figures in figures_by_row:
        figures = _at_path(row_figures, group)
        counts = []
        for key in ("queries", "candidates"):
            if figures.get(key) is not None:
                counts.append(f"{figures[key]:,} {key}")
        if counts:
            different_counts[", ".join(counts)] = None
    return " / ".join(different_counts)

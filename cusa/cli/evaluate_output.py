"""What ``cusa-eval`` prints: the report's tables, comparisons, and the files written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.table
from rich.markup import escape

from cusa.eval.evaluate import Evaluation, make_sections
from cusa.eval.report.paired_differences import Difference
from cusa.eval.report.tables import ComparedColumn, Section, Table
from cusa.screen.console import console, print_plain

if TYPE_CHECKING:
    from rich.console import Console


_UNLIMITED = 100_000  # columns of a screen without an edge


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the tables and notes of an evaluation, and the files that it wrote."""
    print_tables(make_sections(evaluation.reports))
    for note in evaluation.notes:
        print_plain(f"note: {note}")
    print_files(evaluation.written)


def print_tables(sections: Sequence[Section]) -> None:
    """Print the report's tables."""
    screen = console()
    for section in sections:
        for fact in section.facts:
            print_plain(fact)
        # A section's further tables are in the report only.
        for table in section.tables:
            _print_table(table, screen)


def _print_table(table: Table, screen: Console) -> None:
    """Print a table, with a column of differences from the first model if there is room for it."""
    compared = table.compared
    if compared is None:
        screen.print(_screen_table(table, None))
        return
    with_differences = _screen_table(table, compared)
    # Within the screen's own width, any table would be measured as fitting.
    unlimited = screen.options.update(max_width=_UNLIMITED)
    if screen.measure(with_differences, options=unlimited).maximum <= screen.width:
        screen.print(with_differences)
        if any(difference and difference.verdict for difference in compared.differences):
            print_plain("▲ better, ▼ worse, ○ no difference can be told: the 95 % interval holds 0")
        return
    screen.print(_screen_table(table, None))
    for row, difference in zip(table.rows, compared.differences, strict=True):
        if difference is not None:
            words = _difference_in_words(difference)
            print_plain(f"{row.name} against {table.base}, {compared.label}: {words}")


def _screen_table(table: Table, compared: ComparedColumn | None) -> rich.table.Table:
    screen_table = rich.table.Table(title=table.title, title_justify="left")
    screen_table.add_column("model")
    if table.by_head:
        screen_table.add_column("head", no_wrap=True)
    for group, _ in table.groups:
        for metric in group.metrics:
            # Lines of their own keep columns narrow.
            heading = f"{group.title}\n{metric.label}".strip().replace("→ ", "→\n")
            screen_table.add_column(escape(heading), justify="right")
    if compared is not None:
        heading = f"{compared.label}\nagainst {table.base}"
        screen_table.add_column(escape(heading), no_wrap=True)

    for number, row in enumerate(table.rows):
        cells = [escape(row.name)]
        if table.by_head:
            cells.append(f"{row.head} (untrained)" if row.untrained else row.head)
        for cell in row.cells:
            cells.append(f"[bold]{cell.text}[/]" if cell.best else cell.text)
        if compared is not None:
            cells.append(_difference_cell(compared.differences[number]))
        # A row of published figures has no run.
        screen_table.add_row(*cells, style="dim" if row.run is None else None)
    return screen_table


def _difference_cell(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"{difference.sign} {_with_interval(difference)}".strip()


def _difference_in_words(difference: Difference) -> str:
    verdict = f": {difference.verdict}" if difference.verdict else ""
    return f"{_with_interval(difference)}{verdict}"


def _with_interval(difference: Difference) -> str:
    return f"{difference.text} ({difference.interval})" if difference.interval else difference.text


def print_comparison(content: Mapping[str, Any]) -> None:
    """Print the paired differences from the first model, as in comparison.json."""
    model_names = [escape(model_name) for model_name in content["models"]]
    title = f"differences from {model_names[0]}"
    table = rich.table.Table("set", "metric", *model_names, title=title)
    for row in content["rows"]:
        cells = [f"{row['values'][0]:.1f}"]
        for value, paired in zip(row["values"][1:], row["differences"][1:], strict=True):
            # Figures that are not resampled have no interval.
            interval = ""
            if paired["low"] is not None:
                interval = f", {paired['low']:+.1f} to {paired['high']:+.1f}"
            cells.append(f"{value:.1f} ({paired['difference']:+.1f}{interval})")
        table.add_row(escape(row["set"]), row["metric"], *cells)
    console().print(table)


def print_files(written: dict[str, list[Path]]) -> None:
    """Print the files that were written, by kind."""
    for kind, paths in written.items():
        print_plain(f"{kind}: {', '.join(str(path) for path in paths)}")

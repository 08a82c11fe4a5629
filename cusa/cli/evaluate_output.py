"""What ``cusa-eval`` prints: the report's tables, comparisons, and the files written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from rich.markup import escape

from cusa.cli.console import console, print_plain
from cusa.eval.evaluate import Evaluation, make_sections
from cusa.eval.report.tables import Section, Table


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
            screen.print(_screen_table(table))


def _screen_table(table: Table) -> rich.table.Table:
    screen_table = rich.table.Table(title=table.title, title_justify="left")
    screen_table.add_column("model")
    if table.by_head:
        screen_table.add_column("head", no_wrap=True)
    for group, _ in table.groups:
        for metric in group.metrics:
            heading = f"{group.title}\n{metric.label}".strip()
            screen_table.add_column(escape(heading), justify="right")

    for row in table.rows:
        cells = [escape(row.name)]
        if table.by_head:
            cells.append(f"{row.head} (untrained)" if row.untrained else row.head)
        for cell in row.cells:
            cells.append(f"[bold]{cell.text}[/]" if cell.best else cell.text)
        # A row of published figures has no run.
        screen_table.add_row(*cells, style="dim" if row.run is None else None)
    return screen_table


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

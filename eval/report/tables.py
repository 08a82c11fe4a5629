"""The tables of a report, as data.

They know nothing of HTML, LaTeX or suites: each suite makes tables of its results, and
report.html.jinja, latex.py and the command line render them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from cusa.eval.report.paired_differences import ComparedFigure, Difference, SuiteDifferences

TASKS = {
    "i2t": "Image → caption",
    "t2i": "Caption → image",
    "t2t": "Caption → caption",
    "i2i": "Image → image",
}
# Printed in place of a missing figure.
NONE = "–"

# Content of a results file (docs/METRICS.md).
Content = TypeVar("Content", bound=Mapping[str, Any])
# Figures by key; a figure may be a mapping of figures.
Figures = Mapping[str, Any]
FiguresByHead = Mapping[str, Figures]


@dataclass(frozen=True)
class NamedResult(Generic[Content]):
    """A model's results of one suite.

    Attributes:
        name: The model's name in this report.
        content: Content of its results file (docs/METRICS.md); ``None`` if it was not measured.
        differences: Its differences from the first model; ``None`` for the first model, and for
            one that cannot be compared with it.
    """

    name: str
    content: Content | None
    differences: SuiteDifferences | None = None


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        key: Key of the figure.
        label: Label of the column.
        note: Text below the label.
        best: Which figure of the column is the best.
        digits: Number of decimal places.
    """

    key: str
    label: str
    note: str = ""
    best: Literal["highest", "lowest", "none"] = "highest"
    digits: int = 1


@dataclass(frozen=True)
class Group:
    """Columns under one heading.

    Attributes:
        title: The heading.
        path: Keys that lead from a head's figures to those of the columns.
        metrics: The columns.
        paper_keys: The paper's keys by those of the metrics that it publishes.
        compared: The figures of comparison.json by the keys of the metrics that are compared.
    """

    title: str
    path: tuple[str, ...]
    metrics: tuple[Metric, ...]
    paper_keys: Mapping[str, str] | None = None
    compared: Mapping[str, ComparedFigure] | None = None


@dataclass(frozen=True)
class TableSpec(Generic[Content]):
    """Description of a table without its figures.

    Attributes:
        title: Title of the table.
        rule: The rule behind its figures, in words.
        heads: Heads that may answer, ``"cross"`` or ``"uni"``; a model has a row for each it has.
        groups: Groups of columns; columns without any figure are left out.
        figures_by_head: Selects the figures by head, into which the groups' paths lead, from a
            model's results.
        published_row: Selects the published row of a model's setting from its results: ``host``,
            ``method`` and figures.
        unit: Unit of the figures, and which are better.
    """

    title: str
    rule: str
    heads: tuple[str, ...]
    groups: tuple[Group, ...]
    figures_by_head: Callable[[Content], FiguresByHead]
    published_row: Callable[[Content], Figures | None] = lambda content: None
    unit: str = "percent, higher is better"


@dataclass(frozen=True)
class Cell:
    """A figure as printed.

    Attributes:
        text: The figure.
        interval: Its 95 % interval; empty without one.
        best: Whether it is the best figure of its column.
        difference: Its difference from the first model's; ``None`` if they are not compared.
    """

    text: str
    interval: str = ""
    best: bool = False
    difference: Difference | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        run: Position of the model; ``None`` for a published row.
        name: Name of the model, or of the published row.
        head: The head that answers; empty for a published row.
        untrained: Whether the run's loss left that head untrained.
        cells: A cell for each column.
    """

    run: int | None
    name: str
    head: str
    untrained: bool
    cells: tuple[Cell, ...]


class ComparedColumn(NamedTuple):
    """The differences of a column.

    Attributes:
        label: What the figures are.
        differences: The difference in each row; ``None`` in rows without one.
    """

    label: str
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Title of the table.
        rule: The rule behind its figures, in words.
        by_head: Whether several heads may answer, so that rows name their head.
        groups: Groups of columns, each with its numbers of queries and candidates in words.
        rows: The rows.
        unit: Unit of the figures, and which are better.
        data: The data measured; empty if the groups name them.
        base: Name of the model that the cells' differences are from; empty without differences.
    """

    title: str
    rule: str
    by_head: bool
    groups: tuple[tuple[Group, str], ...]
    rows: tuple[Row, ...]
    unit: str = ""
    data: str = ""
    base: str = ""

    @property
    def compared(self) -> ComparedColumn | None:
        """The column whose differences stand for the table where there is no room for all.

        It is that of RSUM, else the first with differences; ``None`` without differences.
        """
        labels = []
        for group, _ in self.groups:
            for metric in group.metrics:
                is_rsum = metric.key == "rsum"
                labels.append(metric.label if is_rsum else f"{group.title}, {metric.label}")
        columns = []
        for number, label in enumerate(labels):
            differences = tuple(row.cells[number].difference for row in self.rows)
            if any(differences):
                columns.append(ComparedColumn(label, differences))
        columns.sort(key=lambda column: column.label != "RSUM")
        return columns[0] if columns else None


@dataclass(frozen=True)
class Headline:
    """The figure that stands for a model in a suite.

    Attributes:
        label: What the figure is.
        figure: The figure.
        difference: Its difference from the first model's; ``None`` if they are not compared.
        base: Name of the first model, if they are compared.
    """

    label: str
    figure: float
    difference: Difference | None = None
    base: str = ""


@dataclass(frozen=True)
class Section:
    """Tables under one heading.

    Attributes:
        id: Anchor of the section.
        title: Title of the section.
        facts: Descriptions of the data measured, a sentence or more per data set.
        intervals: Description of the intervals; empty if there are none.
        tables: The tables.
        further_tables: Tables that the page folds away.
        narrow_tables: The same figures for print, if ``tables`` are too wide for a page of paper.
        headlines: Headlines by position of the model.
        remarks: Remarks on the models' figures by position of the model.
    """

    id: str
    title: str
    facts: tuple[str, ...]
    intervals: str
    tables: tuple[Table, ...]
    further_tables: tuple[Table, ...] = ()
    narrow_tables: tuple[Table, ...] = ()
    headlines: Mapping[int, Headline] | None = None
    remarks: Mapping[int, str] | None = None

    def __bool__(self) -> bool:
        """Tell whether the section has a table."""
        return bool(self.tables or self.further_tables)

"""The tables of a report: which figures stand where, and which is the best of its column.

Nothing here knows HTML, LaTeX or a suite: report.html.jinja, latex.py and the command line draw the
same tables, which each suite makes of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

TASKS = {
    "i2t": "Image → caption",
    "t2i": "Caption → image",
    "t2t": "Caption → caption",
    "i2i": "Image → image",
}
# Printed where there is no figure.
NONE = "–"

# Content of a file of results (docs/METRICS.md).
Content = TypeVar("Content", bound=Mapping[str, Any])
# Figures by key; a figure may be a mapping of figures.
Figures = Mapping[str, Any]
FiguresByHead = Mapping[str, Figures]


@dataclass(frozen=True)
class NamedResult(Generic[Content]):
    """A model's results of one suite.

    Attributes:
        name: The model's name in this report.
        content: Content of its file of results (docs/METRICS.md); ``None`` if it was not measured.
    """

    name: str
    content: Content | None


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        key: The figure's key.
        label: Its label.
        note: Text below the label.
        best: Which of the column's figures is the best.
        digits: Decimal places.
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
        path: Keys from a head's figures to those of the columns.
        metrics: The columns.
        paper_keys: The paper's key of each metric that it publishes.
    """

    title: str
    path: tuple[str, ...]
    metrics: tuple[Metric, ...]
    paper_keys: Mapping[str, str] | None = None


@dataclass(frozen=True)
class TableSpec(Generic[Content]):
    """Description of a table, before there are figures.

    Attributes:
        title: Its title.
        rule: How its figures count.
        heads: Heads that may answer, of ``cross`` and ``uni``; a row for each that a model has.
        groups: Columns; those that no model has are left out.
        figures_by_head: Picks the figures that the groups' paths lead into, from a model's results.
        published_row: Picks the published row of a model's setting: ``host``, ``method``, figures.
    """

    title: str
    rule: str
    heads: tuple[str, ...]
    groups: tuple[Group, ...]
    figures_by_head: Callable[[Content], FiguresByHead]
    published_row: Callable[[Content], Figures | None] = lambda content: None


@dataclass(frozen=True)
class Cell:
    """A figure as printed.

    Attributes:
        text: The figure.
        interval: Its 95 % interval, or nothing.
        best: Whether it is the best of its column.
    """

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        run: The model's position; ``None`` for a published row.
        name: The model's name, or that of the published row.
        head: The head that answers.
        untrained: Whether the run's loss did not train that head.
        cells: A cell for each column.
    """

    run: int | None
    name: str
    head: str
    untrained: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its title.
        rule: How its figures count.
        by_head: Whether several heads may answer.
        groups: Groups of columns, each with its numbers of queries and candidates in words.
        rows: Its rows.
    """

    title: str
    rule: str
    by_head: bool
    groups: tuple[tuple[Group, str], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Headline:
    """The figure that stands for a model in a suite.

    Attributes:
        label: What the figure is.
        figure: The figure.
    """

    label: str
    figure: float


@dataclass(frozen=True)
class Section:
    """Tables under one heading.

    Attributes:
        id: Its anchor.
        title: Its title.
        facts: What was measured, a line per data set.
        intervals: What the intervals are; empty where there are none.
        tables: Its tables.
        further_tables: Tables that are folded away.
        narrow_tables: The same for a printed page, where ``tables`` are too wide for one.
        headlines: Headlines of the models that have one, by position.
        remarks: Explanations of the models' figures, where there are any, by position.
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
        """Whether it has a table."""
        return bool(self.tables or self.further_tables)

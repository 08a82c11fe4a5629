"""The tables of a report: which figures stand where, which is the best of its column, and by what rule they count.

Nothing here knows HTML, LaTeX or a suite: report.html.jinja, latex.py and the command line draw the
same tables, which each suite makes of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

TASKS = {
    "i2t": "Image → caption",
    "t2i": "Caption → image",
    "t2t": "Caption → caption",
    "i2i": "Image → image",
}
NONE = "–"
TIES = {
    "pessimistic": "Ties count against the model: a wrong candidate as similar as the right one comes before it.",
    "mean": "Ties count half: of the wrong candidates as similar as the right one, half come before it.",
    "optimistic": "Ties count for the model: a wrong candidate as similar as the right one comes after it.",
}

Content = TypeVar("Content", bound=Mapping[str, Any])
Figures = Mapping[str, Any]
FiguresByHead = Mapping[str, Figures]


@dataclass(frozen=True)
class NamedResult(Generic[Content]):
    """A model's results of one suite.

    Attributes:
        name: The model's name in this report.
        content: Content of the file of results (docs/METRICS.md); ``None``: it was not measured.
    """

    name: str
    content: Content | None


@dataclass(frozen=True)
class Metric:
    """A column.

    Attributes:
        key: The figure's key.
        label: Its label.
        note: What is printed below the label.
        best: Which of its figures is the best.
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


def _not_published(content: Any) -> Figures | None:
    return None


@dataclass(frozen=True)
class TableSpec(Generic[Content]):
    """What a table shows.

    Attributes:
        title: Its title.
        rule: How its figures count.
        heads: Heads that may answer, of ``cross`` and ``uni``; a row for each that a model has.
        groups: Columns; those that no model has are left out.
        figures_by_head: Takes what the groups look into from a model's results.
        published_row: Takes the published row of its setting: ``host``, ``method`` and figures.
    """

    title: str
    rule: str
    heads: tuple[str, ...]
    groups: tuple[Group, ...]
    figures_by_head: Callable[[Content], FiguresByHead]
    published_row: Callable[[Content], Figures | None] = _not_published


@dataclass(frozen=True)
class Cell:
    """A figure as printed, its 95 % interval or nothing, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        run: The model's position; ``None``: the paper says it.
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
    """The figure that stands for a model in a suite, and what it is."""

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
        more: Tables for whoever looks further.
        narrow_tables: Its tables for a page of paper, where ``tables`` are too wide for that.
        headlines: Headline of each model, by its position; those that have one.
        remarks: What explains a model's figures, by its position; those where something does.
    """

    id: str
    title: str
    facts: tuple[str, ...]
    intervals: str
    tables: tuple[Table, ...]
    more: tuple[Table, ...] = ()
    narrow_tables: tuple[Table, ...] = ()
    headlines: Mapping[int, Headline] | None = None
    remarks: Mapping[int, str] | None = None

    def __bool__(self) -> bool:
        """Whether it has a table."""
        return bool(self.tables or self.more)


def make_tables(
    results: Sequence[NamedResult[Content]], specs: Iterable[TableSpec[Content]]
) -> tuple[Table, ...]:
    """Make the tables that at least one model has a figure for."""
    tables = (make_table(results, spec) for spec in specs)
    return tuple(table for table in tables if table is not None)


def make_table(results: Sequence[NamedResult[Content]], spec: TableSpec[Content]) -> Table | None:
    """Make a table with a row per model and head, a column per metric; the paper's rows last.

    With several models the best of each column is marked, as printed: what reads alike is marked
    alike. A figure that only one row has, and a published one, is not the best of anything.

    Returns:
        The table; ``None`` where nobody has a figure.
    """
    figures = _figures_of_rows(results, spec)
    groups = _groups_with_figures(spec.groups, list(figures.values()))
    figures = {key: own for key, own in figures.items() if _has_any(own, groups)}
    if not figures:
        return None
    columns = [(group, metric) for group in groups for metric in group.metrics]
    rows = []
    for (position, head), own in figures.items():
        cells = tuple(_cell(_at_path(own, group), metric) for group, metric in columns)
        untrained = head == "uni" and _uni_head_is_untrained(results[position].content)
        rows.append(Row(position, results[position].name, head, untrained, cells))
    if len(results) > 1:
        rows = _mark_best(rows, [metric for _, metric in columns])
    headings = []
    for group in groups:
        counts = _counts_in_words([_at_path(own, group) for own in figures.values()])
        headings.append((group, counts))
    return Table(
        spec.title,
        spec.rule,
        len(spec.heads) > 1,
        tuple(headings),
        (*rows, *_paper_rows(results, spec, columns)),
    )


def _figures_of_rows(
    results: Sequence[NamedResult[Content]], spec: TableSpec[Content]
) -> dict[tuple[int, str], Figures]:
    """Take the figures of each row: by the model's position and the head."""
    figures = {}
    for position, result in enumerate(results):
        if result.content is None:
            continue
        by_head = spec.figures_by_head(result.content)
        for head in spec.heads:
            if head in by_head:
                figures[position, head] = by_head[head]
    return figures


def _groups_with_figures(groups: Iterable[Group], rows: Sequence[Figures]) -> list[Group]:
    """Leave out the metrics that no row has, and groups without any other."""
    kept = []
    for group in groups:
        own_figures = [_at_path(row, group) for row in rows]
        metrics = tuple(metric for metric in group.metrics if _is_known(metric, own_figures))
        if metrics:
            kept.append(replace(group, metrics=metrics))
    return kept


def _is_known(metric: Metric, rows: Sequence[Figures]) -> bool:
    return any(row.get(metric.key) is not None for row in rows)


def _has_any(row: Figures, groups: Sequence[Group]) -> bool:
    for group in groups:
        own_figures = _at_path(row, group)
        if any(own_figures.get(metric.key) is not None for metric in group.metrics):
            return True
    return False


def _at_path(figures: Figures, group: Group) -> Figures:
    for key in group.path:
        figures = figures.get(key) or {}
    return figures


def _uni_head_is_untrained(content: Mapping[str, Any] | None) -> bool:
    """Whether a run was trained without USA; a model that is no run has no loss."""
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


def _mark_best(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[Row]:
    cells_by_row = [list(row.cells) for row in rows]
    for column, metric in enumerate(metrics):
        texts = {row.cells[column].text for row in rows} - {NONE}
        n_figures = sum(row.cells[column].text != NONE for row in rows)
        if n_figures < 2 or metric.best == "none":
            continue
        choose = max if metric.best == "highest" else min
        best_text = choose(texts, key=_printed_value)
        for cells in cells_by_row:
            cells[column] = replace(cells[column], best=cells[column].text == best_text)
    return [replace(row, cells=tuple(cells)) for row, cells in zip(rows, cells_by_row, strict=True)]


def _printed_value(text: str) -> float:
    return float(text.replace(",", ""))


def _paper_rows(
    results: Sequence[NamedResult[Content]],
    spec: TableSpec[Content],
    columns: Sequence[tuple[Group, Metric]],
) -> Iterator[Row]:
    """Make a row of each published one whose setting a model has."""
    published: dict[tuple[str, str], Figures] = {}
    for result in results:
        row = spec.published_row(result.content) if result.content is not None else None
        if row:
            published[row["host"], row["method"]] = row
    for (host, method), row in published.items():
        values = []
        for group, metric in columns:
            paper_key = (group.paper_keys or {}).get(metric.key, "")
            values.append(row.get(paper_key))
        if any(value is not None for value in values):
            cells = tuple(Cell(NONE) if v is None else Cell(f"{v:.1f}") for v in values)
            yield Row(None, f"paper: {host}, {method}", "", False, cells)


def _counts_in_words(rows: Sequence[Figures]) -> str:
    counts = (counts_of(row) for row in rows)
    return " / ".join(dict.fromkeys(text for text in counts if text))


def counts_of(figures: Figures) -> str:
    """``"5,000 queries, 25,000 candidates"``, as far as it is known."""
    counts = []
    for key in ("queries", "candidates"):
        if figures.get(key) is not None:
            counts.append(f"{figures[key]:,} {key}")
    return ", ".join(counts)


# --- what the suites' tables share

RECALLS = (Metric("r1", "R@1"), Metric("r5", "R@5"), Metric("r10", "R@10"))
PRECISIONS = (
    Metric("r1", "R@1"),
    Metric("r_precision", "R-Precision"),
    Metric("map_at_r", "mAP@R"),
)
SELF_IS_NO_CANDIDATE = "Where queries are candidates, too, the query itself is none, told apart by its id and never by its rank."


def published(content: Mapping[str, Any]) -> Figures | None:
    """Return the published row that stands beside a model's figures in its results."""
    return content.get("paper")


def contents_of(results: Sequence[NamedResult[Content]]) -> list[Content]:
    """Return the results of the models that were measured."""
    return [result.content for result in results if result.content is not None]


def ties_rule(contents: Iterable[Mapping[str, Any]]) -> str:
    """Say how ties count; metrics.json of format 1.1 does not say and counts them against the model."""
    rules = dict.fromkeys(content.get("ties", "pessimistic") for content in contents)
    if len(rules) > 1:
        return f"Ties are counted by different rules here ({', '.join(rules)}): such figures do not compare."
    return TIES[next(iter(rules))] if rules else ""


def intervals_rule(contents: Iterable[Mapping[str, Any]]) -> str:
    """Say what the intervals are; empty where there are none."""
    rules: dict[str, None] = {}
    for content in contents:
        bootstrap = content.get("bootstrap")
        if bootstrap:
            level, samples, seed = (bootstrap[key] for key in ("level", "samples", "seed"))
            rules[
                f"{100 * level:.0f} % bootstrap intervals over queries, {samples:,} samples, seed {seed}"
            ] = None
    return "; ".join(rules)


def fact(
    name: str, counts: str, fingerprints: Iterable[str | None], notes: Iterable[str] = ()
) -> str:
    """Say what was measured: counts, hash, and what the reader of the data set has to say."""
    hashes = list(dict.fromkeys(text[:12] for text in fingerprints if text))
    if hashes:
        counts += f", sha256 {' and '.join(hashes)}"
    if len(hashes) > 1:
        counts += ". The models were measured on different data: their figures do not compare"
    different_notes = dict.fromkeys(note.rstrip(".") for note in notes)
    return f"{name}: {'. '.join([counts, *different_notes])}."


def data_set_fact(title: str, counts: str, of_models: Sequence[Mapping[str, Any]]) -> str:
    """Say what was measured on a data set.

    Args:
        title: Its title.
        counts: How large it is.
        of_models: The models' results on it, each with ``fingerprint`` and ``notes``.
    """
    fingerprints, notes = [], []
    for of_model in of_models:
        fingerprints.append(of_model["fingerprint"])
        notes += of_model["notes"]
    return fact(title, counts, fingerprints, notes)


def first_scores(of_models: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the figures of any head: what they were computed from is the same for all.

    Args:
        of_models: The models' results on a data set, each with its figures by head under
            ``heads``.
    """
    heads = of_models[0]["heads"]
    return next(iter(heads.values()))


def by_data_set(
    contents: Sequence[Mapping[str, Any]], key: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Gather the models' results of each data set.

    Args:
        contents: Of the models' files of results.
        key: Where these hold data sets by name.
    """
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for content in contents:
        for name, of_data_set in (content.get(key) or {}).items():
            gathered.setdefault(name, []).append(of_data_set)
    return gathered


def by_head_and_data_set(
    data_sets: Mapping[str, Any], take: Callable[[Any], Figures] = lambda figures: figures
) -> dict[str, dict[str, Any]]:
    """Turn figures by data set and head around: by head and data set.

    Args:
        data_sets: By name, each with its figures by head under ``heads``.
        take: Takes what is wanted of a head's figures.
    """
    turned: dict[str, dict[str, Any]] = {}
    for name, of_data_set in data_sets.items():
        for head, figures in of_data_set["heads"].items():
            turned.setdefault(head, {})[name] = take(figures)
    return turned


def approximate_spec(
    searches: Sequence[Mapping[str, Any]],
    groups: Mapping[str, tuple[str, ...]],
    figures_by_head: Callable[[Any], FiguresByHead],
) -> TableSpec[Any]:
    """Describe the table of an approximate index, and of what it loses.

    Args:
        searches: What was searched: index and settings.
        groups: Title of each group of columns, and where its figures are.
        figures_by_head: Takes what the groups look into from a model's results.
    """
    used: dict[str, None] = {}
    for search in searches:
        for settings in search["settings"].values():
            values = ", ".join(f"{name} {value}" for name, value in settings.items())
            used[f"{search['index']} ({values})"] = None
    exact_hits = Metric("recall_of_exact_top10", "Exact top 10", "that it finds")
    columns = tuple(Group(title, path, (*RECALLS, exact_hits)) for title, path in groups.items())
    return TableSpec(
        "By approximate search",
        f"The same queries through {' and '.join(used)}: recalls by its hits, and how many of the exact first ten it "
        "finds.",
        ("cross", "uni"),
        columns,
        figures_by_head,
    )

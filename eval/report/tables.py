"""The tables of a report: which figures stand where, which is the best of its column, and by what rule they count.

Nothing here knows HTML or LaTeX: report.html.jinja and latex.py draw the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cusa.eval.report.failures import FalseNegative
from cusa.eval.report.gallery import GalleryQuery
from cusa.eval.report.paper import paper_tables

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

# What was found, by head: contents of a part of metrics.json, images.json or sts.json.
Found = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunReport:
    """What the report shows of one model.

    Attributes:
        name: The model's name.
        metrics: Contents of its ``metrics.json`` (docs/METRICS.md), or ``None``; figures in percent.
        images: Contents of its ``images.json``, or ``None``.
        sts: Contents of its ``sts.json``, or ``None``.
        history: Lines of its ``metrics.jsonl``; may be empty.
        gallery: Queries with their hits; the same queries in the same order for every model, or none.
        failures: The model's worst queries.
        false_negatives: Its hits that are wrong by the labels alone.
    """

    name: str
    metrics: dict[str, Any] | None = None
    images: dict[str, Any] | None = None
    sts: dict[str, Any] | None = None
    history: tuple[dict[str, Any], ...] = ()
    gallery: tuple[GalleryQuery, ...] = ()
    failures: tuple[GalleryQuery, ...] = ()
    false_negatives: tuple[FalseNegative, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A column: the figure's key, its label, what is printed below that, and which of its figures is the best."""

    key: str
    label: str
    note: str = ""
    best: Literal["highest", "lowest", "none"] = "highest"
    digits: int = 1


@dataclass(frozen=True)
class Group:
    """Columns under one heading: what they are of (keys into what a head found), and the paper's keys by theirs."""

    title: str
    of: tuple[str, ...]
    metrics: tuple[Metric, ...]
    paper: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Kind:
    """What a table is of.

    Attributes:
        title: Its title.
        rule: How its figures count.
        heads: Heads that may answer, of ``cross`` and ``uni``; a row for each that a model has.
        groups: Columns; those that no model has are left out.
        found: Of a model, by head, what the groups look into.
        paper: Of a model, the published row of its setting: ``host``, ``method`` and figures.
    """

    title: str
    rule: str
    heads: tuple[str, ...]
    groups: tuple[Group, ...]
    found: Callable[[RunReport], Found]
    paper: Callable[[RunReport], Mapping[str, Any] | None] = lambda run: None


@dataclass(frozen=True)
class Cell:
    """A figure as printed, its 95 % interval or nothing, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row: the model's position and the head that answers, or what the paper says (position ``None``)."""

    run: int | None
    name: str
    head: str
    untrained: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Groups of columns with the numbers of queries and candidates, and rows; ``by_head``: several heads may answer."""

    title: str
    rule: str
    by_head: bool
    groups: tuple[tuple[Group, str], ...]
    rows: tuple[Row, ...]


def make_table(runs: Sequence[RunReport], kind: Kind) -> Table | None:
    """A row per model and head, a column per metric; the paper's rows last.

    With several models the best of each column is marked, as printed: what reads alike is marked alike. A figure that
    only one row has, and a published one, is not the best of anything.

    Returns:
        The table; ``None`` where nobody has a figure.
    """
    found = [kind.found(run) for run in runs]
    keys = [(i, head) for i, of_run in enumerate(found) for head in kind.heads if head in of_run]
    parts = {g.title: [_part(found[i][head], g) for i, head in keys] for g in kind.groups}
    known = (
        replace(g, metrics=tuple(m for m in g.metrics if _has(parts[g.title], m)))
        for g in kind.groups
    )
    groups = [g for g in known if g.metrics]
    keys = [
        (i, head) for i, head in keys if any(_figures(_part(found[i][head], g), g) for g in groups)
    ]
    if not keys:
        return None
    columns = [(g, m) for g in groups for m in g.metrics]
    rows = [
        Row(
            run=i,
            name=runs[i].name,
            head=head,
            untrained=head == "uni" and _uni_untrained(runs[i]),
            cells=tuple(_cell(_part(found[i][head], g), m) for g, m in columns),
        )
        for i, head in keys
    ]
    if len(runs) > 1:
        rows = _mark_best(rows, [m for _, m in columns])
    headings = tuple((g, _counts([_part(found[i][head], g) for i, head in keys])) for g in groups)
    return Table(
        kind.title,
        kind.rule,
        len(kind.heads) > 1,
        headings,
        (*rows, *_paper_rows(runs, kind, columns)),
    )


def recalls_by_rank(title: str, of: tuple[str, ...], paper: bool = False) -> Group:
    """The group of R@1, R@5 and R@10."""
    direction = of[-1]
    return Group(
        title, of, RECALLS, {m.key: f"{direction}_{m.key}" for m in RECALLS} if paper else None
    )


def cross_modal(title: str, rule: str, *of: str, published: bool = False) -> Kind:
    """Recalls both ways and their sum, of a part of a head's metrics; ``published``: the paper has the same."""
    both = (recalls_by_rank(TASKS[d], (*of, d), published) for d in ("i2t", "t2i"))
    groups = (*both, Group("Sum", of, (RSUM,), {"rsum": "rsum"} if published else None))
    return Kind(
        title, rule, ("cross",), groups, _heads, _published if published else lambda run: None
    )


def ties_rule(contents: Iterable[Mapping[str, Any] | None]) -> str:
    """How ties count, in words; metrics.json of format 1.1 does not say and counts them against the model."""
    rules = dict.fromkeys(c.get("ties", "pessimistic") for c in contents if c)
    if len(rules) > 1:
        return f"Ties are counted by different rules here ({', '.join(rules)}): such figures do not compare."
    return TIES[next(iter(rules))] if rules else ""


def counts_of(content: Mapping[str, Any]) -> str:
    """``"5,000 queries, 25,000 candidates"``, as far as it is known."""
    return ", ".join(
        f"{content[k]:,} {k}" for k in ("queries", "candidates") if content.get(k) is not None
    )


RECALLS = (Metric("r1", "R@1"), Metric("r5", "R@5"), Metric("r10", "R@10"))
PRECISIONS = (
    Metric("r1", "R@1"),
    Metric("r_precision", "R-Precision"),
    Metric("map_at_r", "mAP@R"),
)
RSUM = Metric("rsum", "RSUM")


def _heads(run: RunReport) -> Found:
    return run.metrics["heads"] if run.metrics else {}


def _published(run: RunReport) -> Mapping[str, Any] | None:
    return run.metrics.get("paper") if run.metrics else None


def published_eccv(run: RunReport) -> Mapping[str, Any] | None:
    """The published ECCV Caption row of the host and method whose COCO row stands beside the run."""
    if not (row := _published(run)):
        return None
    found = [
        r
        for r in paper_tables()["eccv_caption"]
        if (r["host"], r["method"]) == (row["host"], row["method"])
    ]
    return found[0] if found else None


def _uni_untrained(run: RunReport) -> bool:
    about = run.metrics or run.images or run.sts or {}
    terms = about.get("loss_terms") or about.get("model", {}).get("loss_terms")
    return bool(terms) and "usa" not in terms  # a model that is no run has no loss


def _part(found: Mapping[str, Any], group: Group) -> Mapping[str, Any]:
    for key in group.of:
        found = found.get(key) or {}
    return found


def _has(parts: Sequence[Mapping[str, Any]], metric: Metric) -> bool:
    return any(part.get(metric.key) is not None for part in parts)


def _figures(part: Mapping[str, Any], group: Group) -> list[float]:
    return [part[m.key] for m in group.metrics if part.get(m.key) is not None]


def _cell(part: Mapping[str, Any], metric: Metric) -> Cell:
    if (value := part.get(metric.key)) is None:
        return Cell(NONE)
    interval = (part.get("ci") or {}).get(metric.key)
    digits = metric.digits
    return Cell(
        f"{value:,.{digits}f}",
        f"{interval[0]:.{digits}f}–{interval[1]:.{digits}f}" if interval else "",
    )


def _mark_best(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[Row]:
    best: list[str | None] = []
    for column, metric in zip(zip(*(row.cells for row in rows), strict=True), metrics, strict=True):
        texts = sorted(
            (c.text for c in column if c.text != NONE),
            key=lambda text: float(text.replace(",", "")),
        )
        marked = len(texts) > 1 and metric.best != "none"
        best.append(texts[-1 if metric.best == "highest" else 0] if marked else None)
    return [
        replace(
            row,
            cells=tuple(
                replace(c, best=c.text == top) for c, top in zip(row.cells, best, strict=True)
            ),
        )
        for row in rows
    ]


def _paper_rows(
    runs: Sequence[RunReport], kind: Kind, columns: Sequence[tuple[Group, Metric]]
) -> Iterable[Row]:
    published = {(row["host"], row["method"]): row for run in runs if (row := kind.paper(run))}
    for (host, method), row in published.items():
        values = [row.get((group.paper or {}).get(metric.key, "")) for group, metric in columns]
        if any(v is not None for v in values):
            texts = tuple(Cell(NONE if v is None else f"{v:.1f}") for v in values)
            yield Row(None, f"paper: {host}, {method}", "", False, texts)


def _counts(parts: Sequence[Mapping[str, Any]]) -> str:
    return " / ".join(dict.fromkeys(text for part in parts if (text := counts_of(part))))

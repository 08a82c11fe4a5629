"""The report's tables for a paper: LaTeX with booktabs, the best of each column bold."""

from __future__ import annotations

from collections.abc import Sequence

from cusa.eval.report.tables import NONE, Cell, Row, Section, Table

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    '"': "''",
    "\n": " ",
    "\r": " ",
    "\t": " ",
}
_ESCAPES.update({character: f"\\{character}" for character in "&%$#_{}"})
_ESCAPE_TABLE = str.maketrans(_ESCAPES)


def latex_tables(sections: Sequence[Section], intervals: bool = False) -> str:
    r"""Draw the tables of all that was measured.

    They need the package ``booktabs`` and nothing else.

    Args:
        sections: The tables.
        intervals: Set each figure's interval below it, as a subscript.

    Returns:
        ``table`` environments, each with a ``\label``; empty where nothing was measured.
    """
    environments = []
    for section in sections:
        tables = section.narrow_tables or section.tables
        for number, table in enumerate(tables, 1):
            caption = _caption(table, section, intervals)
            label = f"{section.id}-{number}"
            environments.append(_environment(table, caption, label, intervals))
    return "\n".join(environments)


def escape(text: str) -> str:
    """Escape text so that LaTeX prints it as it is."""
    return text.translate(_ESCAPE_TABLE)


def _caption(
    table: Table,
    section: Section,
    intervals: bool,
) -> str:
    sentences = [f"{table.title}.", table.rule]
    counts = [f"{group.title}: {words}" for group, words in table.groups if words]
    if counts:
        sentences.append("; ".join(counts) + ".")
    sentences += section.facts
    if any(_has_best(row) for row in table.rows):
        sentences.append("The best of each column is bold.")
    if intervals and section.intervals:
        sentences.append(f"Subscripts: {section.intervals}.")
    return " ".join(sentences)


def _has_best(row: Row) -> bool:
    return any(cell.best for cell in row.cells)


def _environment(
    table: Table,
    caption: str,
    label: str,
    intervals: bool,
) -> str:
    name_columns = ["Model", "Head"] if table.by_head else ["Model"]
    titles = [""] * len(name_columns)
    labels = list(name_columns)
    rules = []
    for group, _ in table.groups:
        # A heading and a rule over the columns of each group.
        width = len(group.metrics)
        first = len(labels) + 1
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        titles.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group.title)}}}")
        for metric in group.metrics:
            labels.append(escape(metric.label))

    n_figures = len(labels) - len(name_columns)
    alignment = "l" * len(name_columns) + "r" * n_figures
    lines = [
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _line(titles),
        " ".join(rules),
        _line(labels),
        r"\midrule",
        *_body(table, intervals),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _body(table: Table, intervals: bool) -> list[str]:
    """Draw the rows: a model's name in its first one alone, published rows below a rule."""
    body_lines = []
    previous: Row | None = None
    for row in table.rows:
        is_published = row.run is None
        if is_published and (previous is None or previous.run is not None):
            body_lines.append(r"\midrule")
        is_same_model = previous is not None and not is_published and row.run == previous.run
        cells = ["" if is_same_model else escape(row.name)]
        if table.by_head:
            cells.append(row.head)
        for cell in row.cells:
            cells.append(_figure(cell, intervals))
        body_lines.append(_line(cells))
        previous = row
    return body_lines


def _line(cells: Sequence[str]) -> str:
    row = " & ".join(cells) + r" \\"
    if row.startswith("["):
        # The line break before it would take the bracket as its argument.
        return "{}" + row
    return row


def _figure(cell: Cell, intervals: bool) -> str:
    text = "--" if cell.text == NONE else cell.text
    if cell.best:
        text = rf"\textbf{{{text}}}"
    if not intervals or not cell.interval:
        return text
    bounds = cell.interval.replace("–", r",\,")
    return rf"{text}$_{{[{bounds}]}}$"

"""The report's tables in LaTeX with booktabs, with the best figure of each column in bold."""

from __future__ import annotations

from collections.abc import Sequence

from cusa.eval.report.paired_differences import Difference
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


def latex_tables(sections: Sequence[Section]) -> str:
    r"""Render the tables of all sections; they need the package ``booktabs`` only.

    Args:
        sections: The sections of the report.

    Returns:
        ``table`` environments, each with a ``\label``; empty without tables.
    """
    environments = []
    for section in sections:
        tables = section.narrow_tables or section.tables
        for number, table in enumerate(tables, 1):
            caption = _caption(table, section)
            environments.append(_environment(table, caption, f"{section.id}-{number}"))
    return "\n".join(environments)


def escape(text: str) -> str:
    """Escape a text so that LaTeX prints it literally."""
    return text.translate(_ESCAPE_TABLE)


def _caption(table: Table, section: Section) -> str:
    sentences = [f"{table.title}.", table.rule]
    counts = [f"{group.title}: {words}" for group, words in table.groups if words]
    if counts:
        sentences.append("; ".join(counts) + ".")
    sentences += section.facts
    if any(cell.best for row in table.rows for cell in row.cells):
        sentences.append("The best of each column is bold.")
    if table.compared is not None:
        sentences.append(
            f"The last column has the differences from {table.base} in {table.compared.label}, "
            "with paired 95 % intervals where they were resampled."
        )
    return " ".join(sentences)


def _environment(
    table: Table,
    caption: str,
    label: str,
) -> str:
    name_columns = ["Model", "Head"] if table.by_head else ["Model"]
    titles = [""] * len(name_columns)
    labels = list(name_columns)
    rules = []
    for group, _ in table.groups:
        # Each group has a heading and a rule above its columns.
        width = len(group.metrics)
        first = len(labels) + 1
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        titles.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group.title)}}}")
        for metric in group.metrics:
            labels.append(escape(metric.label))

    if table.compared is not None:
        titles.append("")
        labels.append(r"$\Delta$ " + escape(table.compared.label))
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
        *_body(table),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _body(table: Table) -> list[str]:
    """Render the rows: a model's name in its first row only, published rows below a rule."""
    body_lines = []
    previous: Row | None = None
    for number, row in enumerate(table.rows):
        is_published = row.run is None
        if is_published and (previous is None or previous.run is not None):
            body_lines.append(r"\midrule")
        is_same_model = previous is not None and not is_published and row.run == previous.run
        cells = ["" if is_same_model else escape(row.name)]
        if table.by_head:
            cells.append(row.head)
        cells += map(_figure, row.cells)
        if table.compared is not None:
            cells.append(_difference(table.compared.differences[number]))
        body_lines.append(_line(cells))
        previous = row
    return body_lines


def _line(cells: Sequence[str]) -> str:
    row = " & ".join(cells) + r" \\"
    if row.startswith("["):
        # The line break above would take the bracket as its argument.
        return "{}" + row
    return row


def _figure(cell: Cell) -> str:
    if cell.text == NONE:
        return "--"
    return rf"\textbf{{{cell.text}}}" if cell.best else cell.text


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "--"
    # A hyphen would be printed as one; in math mode, it is a minus sign.
    figures = [f"{difference.value:+.1f}"]
    if difference.low is not None and difference.high is not None:
        figures.append(rf"[{difference.low:+.1f}, {difference.high:+.1f}]")
    return f"${'~'.join(figures)}$"

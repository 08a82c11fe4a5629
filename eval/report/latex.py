"""The report's tables for a paper: LaTeX with booktabs, the best of each column bold."""

from __future__ import annotations

from collections.abc import Sequence

from cusa.eval.report.tables import NONE, Cell, Section, Table

_ESCAPES = str.maketrans(
    {
        **{c: rf"\{c}" for c in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''", "\n": " ", "\r": " ", "\t": " "},
        **{"→": r"$\rightarrow$", "×": r"$\times$", "±": r"$\pm$", "–": "--"},
    }
)


def latex_tables(sections: Sequence[Section], intervals: bool = False) -> str:
    r"""Draw the tables of all that was measured.

    They need the package ``booktabs`` and nothing else.

    Args:
        sections: The tables.
        intervals: Set each figure's interval below it, as a subscript.

    Returns:
        ``table`` environments, each with a ``\label``; empty where nothing was measured.
    """
    parts = []
    for section in sections:
        tables = section.narrow_tables or section.tables
        for number, table in enumerate(tables, 1):
            said = [f"{table.title}.", table.rule, *_counts(table), *section.facts]
            if any(cell.best for row in table.rows for cell in row.cells):
                said.append("The best of each column is bold.")
            if intervals and section.intervals:
                said.append(f"Subscripts: {section.intervals}.")
            parts.append(_environment(table, " ".join(said), f"{section.id}-{number}", intervals))
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(_ESCAPES)


def _environment(table: Table, caption: str, label: str, intervals: bool) -> str:
    left = 2 if table.by_head else 1
    titles, rules, column = [""] * left, [], left + 1
    for group, _ in table.groups:
        width = len(group.metrics)
        titles.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group.title)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    labels = ["Model", "Head"][:left] + [
        escape(m.label) for group, _ in table.groups for m in group.metrics
    ]
    lines = [
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (column - left - 1)}}}",
        r"\toprule",
        _line(titles),
        " ".join(rules),
        _line(labels),
        r"\midrule",
    ]
    published = [row.run is None for row in table.rows]
    for i, row in enumerate(table.rows):
        if published[i] and not any(published[:i]):
            lines.append(r"\midrule")
        again = i > 0 and row.run is not None and row.run == table.rows[i - 1].run
        name = ["" if again else escape(row.name), row.head][:left]
        lines.append(_line(name + [_figure(cell, intervals) for cell in row.cells]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _line(cells: Sequence[str]) -> str:
    row = " & ".join(cells) + r" \\"
    return (
        "{}" + row if row.startswith("[") else row
    )  # the line break before it would take it as its argument


def _figure(cell: Cell, intervals: bool) -> str:
    text = "--" if cell.text == NONE else cell.text
    text = rf"\textbf{{{text}}}" if cell.best else text
    low_high = cell.interval.replace("–", r",\,")
    return rf"{text}$_{{[{low_high}]}}$" if intervals and cell.interval else text


def _counts(table: Table) -> list[str]:
    said = [f"{group.title}: {counts}" for group, counts in table.groups if counts]
    return ["; ".join(said) + "."] if said else []

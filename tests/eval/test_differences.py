"""Differences in a report: those of ``cusa-eval compare``, wherever tables show them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from cusa.cli import evaluate_output
from cusa.eval.compare import compare
from cusa.eval.differences import with_differences
from cusa.eval.evaluate import make_sections
from cusa.eval.metrics.bootstrap import NO_BOOTSTRAP, Bootstrap
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.metrics.ranks import RankBounds
from cusa.eval.queries import Queries
from cusa.eval.report.latex import latex_tables
from cusa.eval.report.paired_differences import Difference
from tests.eval import made_up

SOME = Bootstrap(200)


def _queries(name, seed, uni_head="cross", ties="pessimistic"):
    rng = np.random.default_rng(seed)
    per_query = {}
    for head in ("cross", "uni"):
        for task in ("retrieval/i2t", "retrieval/t2i", "unimodal/t2t"):
            ranks = rng.integers(0, 20, 60)
            per_query[f"tiny test/{head}/{task}"] = Rankings(RankBounds(ranks, ranks), 60)
    return Queries(name, uni_head, ties, {"tiny test": "f00d"}, per_query)


def _models(*names):
    """The report and the queries of each model; all but the first were trained with USA."""
    reports, queries = [], []
    for number, name in enumerate(names):
        terms = ["contrastive", "usa"] if number else ["contrastive"]
        reports.append(made_up.report(name, made_up.metrics(name, terms, 40.0, 36.0, 20.0)))
        queries.append({"retrieval": _queries(name, number, "uni" if number else "cross")})
    return reports, queries


def _rows(reports):
    table, within, *_ = make_sections(reports)[0].tables
    return table, within


def test_cells_hold_the_differences_of_compare():
    reports, queries = _models("a", "b", "c")
    compared = with_differences(reports, queries, SOME)
    table, within = _rows(compared)
    assert (table.base, within.base) == ("a", "a")
    for position in (1, 2):
        expected = {}
        for row in compare([queries[0], queries[position]], SOME)["rows"]:
            paired = row["differences"][1]
            expected[row["metric"]] = Difference(
                paired["difference"], paired["low"], paired["high"]
            )
        metrics = [f"{task} r{k}" for task in ("i2t", "t2i") for k in (1, 5, 10)]
        cells = table.rows[position].cells
        assert [cell.difference for cell in cells] == [expected[m] for m in (*metrics, "rsum")]
        (uni_row,) = (row for row in within.rows if (row.run, row.head) == (position, "uni"))
        uni_differences = [cell.difference for cell in uni_row.cells[:3]]
        assert uni_differences == [expected[f"t2t r{k}"] for k in (1, 5, 10)]
        (headline,) = (h for p, h in make_sections(compared)[0].headlines.items() if p == position)
        assert (headline.difference, headline.base) == (expected["rsum"], "a")
    # Neither the first model, nor a head that does not answer.
    others = [row for row in within.rows if (row.run, row.head) not in ((1, "uni"), (2, "uni"))]
    for row in (table.rows[0], *others):
        assert not any(cell.difference for cell in row.cells)


def test_results_hold_them_too():
    reports, queries = _models("a", "b")
    reports[0].results["retrieval"]["model"] = {"weights_sha256": "abc"}
    first, second = with_differences(reports, queries, SOME)
    assert "differences" not in first.results["retrieval"]
    kept = second.results["retrieval"]["differences"]
    assert (kept["base"], kept["base_weights_sha256"]) == ("a", "abc")
    (rsum,) = (figure for figure in kept["figures"] if figure["metric"] == "rsum")
    assert rsum["low"] <= rsum["difference"] <= rsum["high"]
    assert "differences" not in reports[1].results["retrieval"]


def test_the_first_model_is_the_first_that_has_the_suite():
    reports, queries = _models("a", "b")
    text_model = made_up.report("words", sts=made_up.sts("words", 70.0))
    compared = with_differences([text_model, *reports], [{}, *queries], SOME)
    assert [report.differences.keys() for report in compared] == [set(), set(), {"retrieval"}]
    assert compared[2].differences["retrieval"].base == "a"


def test_results_by_another_rule_or_of_other_data_are_not_compared():
    reports, queries = _models("a", "b", "c")
    queries[1]["retrieval"] = replace(queries[1]["retrieval"], ties="mean")
    queries[2]["retrieval"] = replace(queries[2]["retrieval"], sets={"tiny test": "beef"})
    assert with_differences(reports, queries, SOME) == reports


@pytest.mark.parametrize(
    ("difference", "verdict", "sign"),
    [
        (Difference(1.25, 0.4, 2.1), "better", "▲"),
        (Difference(-1.25, -2.1, -0.4), "worse", "▼"),
        (Difference(1.25, -0.4, 2.9), "no difference can be told", "○"),
        (Difference(0.0, 0.0, 0.0), "no difference can be told", "○"),
        (Difference(1.25, None, None), "", ""),
    ],
)
def test_verdicts(difference, verdict, sign):
    assert (difference.verdict, difference.sign) == (verdict, sign)


def _screen(monkeypatch, sections, width):
    screen = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(evaluate_output, "console", lambda: screen)
    monkeypatch.setattr(evaluate_output, "print_plain", screen.print)
    evaluate_output.print_tables(sections)
    return screen.file.getvalue()


def test_the_terminal_has_a_column_where_there_is_room(monkeypatch):
    reports, queries = _models("a", "b")
    sections = make_sections(with_differences(reports, queries, SOME))
    rsum = sections[0].tables[0].compared.differences[1]
    figures = f"{rsum.text} ({rsum.interval})"
    wide = _screen(monkeypatch, sections, 160)
    assert f"{rsum.sign} {figures}" in wide
    assert "against b" not in wide
    assert "b against a" not in wide
    narrow = _screen(monkeypatch, sections, 80)
    assert f"b against a, RSUM: {figures}: {rsum.verdict}" in " ".join(narrow.split())


def test_without_a_bootstrap_there_is_no_interval(monkeypatch):
    reports, queries = _models("a", "b")
    sections = make_sections(with_differences(reports, queries, NO_BOOTSTRAP))
    rsum = sections[0].tables[0].compared.differences[1]
    assert (rsum.low, rsum.high, rsum.verdict, rsum.interval) == (None, None, "", "")
    assert "▲" not in _screen(monkeypatch, sections, 160)
    assert rf"${rsum.value:+.1f}$ \\" in latex_tables(sections)


def test_latex_has_a_column_for_rsum():
    reports, queries = _models("a", "b")
    lines = latex_tables(make_sections(with_differences(reports, queries, SOME))).splitlines()
    rsum = with_differences(reports, queries, SOME)[1].differences["retrieval"]
    rsum = rsum.figures["tiny test", "rsum"]
    cell = f"${rsum.value:+.1f}~[{rsum.low:+.1f}, {rsum.high:+.1f}]$"
    (headings,) = (line for line in lines if line.endswith(r"$\Delta$ RSUM \\"))
    first, second = [line for line in lines if line.startswith(("a & ", "b & "))][:2]
    assert second.endswith(rf"{cell} \\")
    assert first.endswith(r"& -- \\")
    assert headings.count("&") == first.count("&") == second.count("&")


def test_the_page_says_what_cannot_be_told(tmp_path):
    reports, queries = _models("a", "b")
    compared = with_differences(reports, queries, SOME)
    made_up.write(tmp_path / "report.html", compared)
    page = " ".join((tmp_path / "report.html").read_text("utf-8").split())
    difference = compared[1].differences["retrieval"].figures["tiny test", "rsum"]
    in_words = f"{difference.text} ({difference.interval}) against a: {difference.verdict}"
    assert in_words in page
    assert "the difference from a, in points" in page
    made_up.write(tmp_path / "alone.html", reports)
    assert "the difference from" not in (tmp_path / "alone.html").read_text("utf-8")

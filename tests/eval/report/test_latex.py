"""LaTeX tables: the figures of the report, escaped, and of a shape that LaTeX accepts."""

import re
import shutil
import subprocess

import pytest

from cusa.eval.evaluate import make_sections
from cusa.eval.report.latex import escape, latex_tables
from cusa.eval.report.shared_tables import TIES
from tests.eval import made_up


@pytest.fixture
def reports():
    terms = ["contrastive", "csa", "usa"]
    first = made_up.report(
        "plain_0 & 50%",
        made_up.metrics("plain", terms[:1], 40.0, 36.0, 20.0, coco=True),
        made_up.images("plain", 40.0),
        made_up.sts("plain", 70.0, ("cross", "uni")),
    )
    second = made_up.report(
        "cusa",
        made_up.metrics("cusa", terms, 43.21, 35.0, 25.0, coco=True),
        made_up.images("cusa", 41.0),
        made_up.sts("cusa", 71.0, ("cross", "uni")),
    )
    second.results["images"]["paper"] = {
        "host": "SGR",
        "method": "CUSA",
        "cub": 31.1,
        "average": 34.1,
    }
    return [first, second, made_up.report("words", sts=made_up.sts("words", 72.5))]


def _tables(latex):
    """Caption, alignment and rows of cells of each table."""
    for body in re.findall(r"\\begin\{table\}(.*?)\\end\{table\}", latex, re.DOTALL):
        caption = re.search(r"\\caption\{(.*)\}\n", body)[1]
        alignment, inside = re.search(
            r"\\begin\{tabular\}\{(\w+)\}\n(.*)\\end\{tabular\}", body, re.DOTALL
        ).groups()
        lines = [line for line in inside.splitlines() if line.endswith(r" \\")]
        yield caption, alignment, [re.split(r" (?<!\\)& ", line[:-3]) for line in lines]


def test_figures_are_those_of_the_report(reports):
    tables = list(_tables(latex_tables(make_sections(reports))))
    caption, alignment, rows = tables[0]
    assert alignment == "lrrrrrrr"
    assert rows[1] == ["Model", "R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "RSUM"]
    best = [rf"\textbf{{{f}}}" for f in ("36.0", "46.0", "56.0")]
    assert rows[2] == [r"plain\_0 \& 50\%", "40.0", "50.0", "60.0", *best, "288.0"]
    assert rows[3][:5] == ["cusa", r"\textbf{43.2}", r"\textbf{53.2}", r"\textbf{63.2}", "35.0"]
    assert len(rows) == 4
    for part in (
        "tiny, split test: 3 images, 1,234 captions, sha256 0123456789ab.",
        r"Image $\rightarrow$ caption: 4 queries, 1,234 candidates",
        TIES["pessimistic"],
        "The best of each column is bold.",
    ):
        assert part in caption
    assert "bootstrap" not in caption


def test_every_suite_is_there(reports):
    titles = [
        caption.split(".")[0] for caption, _, _ in _tables(latex_tables(make_sections(reports)))
    ]
    assert titles == [
        *["Between images and captions", "Among captions and among images"],
        *[
            "Between images and captions, by the known truth",
            "COCO 5K",
            "COCO 1K",
            "ECCV Caption",
            "CxC",
            "PMRP",
        ],
        *["Image retrieval, R@1", "Image retrieval, R-Precision", "Image retrieval, mAP@R"],
        *["Sentence similarity by task", "CxC: captions and images"],
    ]
    only = [
        caption.split(".")[0] for caption, _, _ in _tables(latex_tables(make_sections(reports[2:])))
    ]
    assert only == ["Sentence similarity by task", "CxC: captions and images"]
    assert latex_tables(make_sections([made_up.report("nothing")])) == ""


def test_image_retrieval_is_a_table_per_figure(reports):
    r1, r_precision, map_at_r = (
        t
        for t in _tables(latex_tables(make_sections(reports)))
        if t[0].startswith("Image retrieval")
    )
    assert r1[2][1] == ["Model", "Head", "Average", "CUB", "SOP", "In-Shop", "iNat"]
    assert r1[2][2] == [r"plain\_0 \& 50\%", "cross", "41.5", "41.0", "42.0", "43.0", "40.0"]
    assert r1[2][3][:4] == ["", "uni", "43.5", "43.0"]
    assert r1[2][5] == [
        "",
        "uni",
        *(rf"\textbf{{{f}}}" for f in ("44.5", "44.0", "45.0", "46.0", "43.0")),
    ]
    assert r1[2][6] == ["paper: SGR, CUSA", "", "34.1", "31.1", "--", "--", "--"]
    assert "CUB-200-2011: 5,924 queries, 5,923 candidates, 100 classes" in r1[0]
    assert r_precision[2][2][1:4] == ["cross", "21.0", "22.0"]
    assert map_at_r[2][2][1:4] == ["cross", "11.0", "12.0"]
    assert len(map_at_r[2]) == 6  # what the paper does not have, it has no row for


def test_sentence_similarity(reports):
    (table,) = (
        t for t in _tables(latex_tables(make_sections(reports))) if t[0].startswith("Sentence")
    )
    assert table[2][0][2:] == [r"\multicolumn{8}{c}{100 $\times$ Spearman}"]
    assert table[2][1][2:5] == ["Average", "STS12", "STS13"]
    assert table[2][6][:4] == ["words", "cross", r"\textbf{75.5}", r"\textbf{72.5}"]
    assert "STS12: 1,500 pairs in 2 subsets, sha256 555555555555." in table[0]


def test_text_is_escaped():
    assert escape(r"a_b & 5% #1 $x {y} ~z ^w \q") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{}z \textasciicircum{}w \textbackslash{}q"
    )
    assert escape("100 × a → b\nc") == r"100 $\times$ a $\rightarrow$ b c"


def test_rows_are_as_wide_as_their_table(reports):
    latex = latex_tables(make_sections(reports))
    for caption, alignment, (titles, *rows) in _tables(latex):
        assert {len(row) for row in rows} == {len(alignment)}, caption
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", " ".join(titles))]
        assert sum(spans) + sum(not title for title in titles) == len(alignment), caption
    assert latex.isascii()
    assert len(set(re.findall(r"\\label\{(.*?)\}", latex))) == latex.count(r"\label") == 13
    rules = re.findall(r"\\(toprule|midrule|bottomrule)", latex)
    assert rules.count("toprule") == rules.count("bottomrule") == 13
    assert rules.count("midrule") == 14  # one more where the paper stands below
    plain = re.sub(r"\\[{}]", "", latex)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_accepts_it(tmp_path, reports):
    body = latex_tables(make_sections(reports))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\extrafloats{50}\\begin{document}\n"
        + body
        + "\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]

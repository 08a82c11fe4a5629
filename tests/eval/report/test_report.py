"""The HTML report: the right figures in the right cells; nothing fetched, run, or shown twice."""

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from cusa.eval.evaluate import make_sections
from cusa.eval.report.failures import FalseNegative
from cusa.eval.report.gallery import GalleryHit, GalleryQuery, Item
from cusa.eval.report.report import headlines
from cusa.eval.report.shared_tables import TIES
from cusa.eval.report.tables import TASKS
from tests.eval import made_up

SCRIPT = "<script>alert('boo')</script> & \"quoted\""


class Page(HTMLParser):
    """Tables as rows of cells (text, in bold, small print), start tags, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.text = [], [], ""
        self._cell, self._bold, self._small, self._in_small = None, False, "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell, self._bold, self._small = "", False, ""
        elif tag == "b":
            self._bold = True
        elif tag == "small":
            self._in_small = True
        if tag in ("small", "dt", "dd"):
            self.text += " "

    def handle_data(self, data):
        self.text += data
        if self._cell is not None and self._in_small:
            self._small += data
        elif self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append((" ".join(self._cell.split()), self._bold, self._small))
            self._cell = None
        elif tag == "small":
            self._in_small = False

    def words(self):
        return " ".join(self.text.split())

    def table(self, *headings):
        """The table whose first row of headings reads so; its other rows."""
        (found,) = [t for t in self.tables if [text for text, _, _ in t[0]] == list(headings)]
        return found[1:]

    def labels(self):
        return [attrs["aria-label"] for _, attrs in self.tags if "aria-label" in attrs]


@pytest.fixture
def runs(tmp_path):
    """Two runs, three images of which one is missing, one query per task."""
    paths = [tmp_path / f"{name}.png" for name in ("red", "blue", "gone")]
    Image.new("RGB", (400, 200), (200, 0, 0)).save(paths[0])
    Image.new("RGBA", (8, 8), (0, 0, 200, 100)).save(paths[1])
    red, blue, gone = (Item("image", f"id-{p.stem}", p) for p in paths)
    one, two = Item("text", "a red one", None), Item("text", SCRIPT, None)
    right = GalleryHit(one, 0.125, True)
    first = (
        GalleryQuery(
            "i2t",
            "cross",
            red,
            (GalleryHit(two, 0.912, False), GalleryHit(one, 0.5, True)),
            1,
            GalleryHit(one, 0.5, True),
        ),
        GalleryQuery(
            *(
                "t2i",
                "cross",
                one,
                (
                    GalleryHit(red, 0.8, True),
                    GalleryHit(gone, 0.7, False),
                    GalleryHit(blue, 0.6, False),
                ),
                0,
            ),
            GalleryHit(red, 0.8, True),
        ),
        GalleryQuery("t2t", "uni", two, (GalleryHit(one, 0.25, False),), 1233, right),
        GalleryQuery("i2i", "uni", blue, (GalleryHit(red, -0.126, None),), None, None),
    )
    second = tuple(replace(answer, hits=answer.hits[::-1]) for answer in first)
    terms = ["contrastive", "csa", "usa"]
    made = (
        made_up.metrics("plain-0", terms[:1], 40.0, 36.0, 20.0),
        made_up.metrics("cusa-0", terms, 43.21, 35.0, 25.0),
    )
    return [
        made_up.report(
            "plain-0", made[0], history=made_up.history(terms[:1], [300, 310]), gallery=first
        ),
        made_up.report(
            "cusa-0", made[1], history=made_up.history(terms, [305, 320, 315]), gallery=second
        ),
    ]


CROSS = ("Model", "Image → caption", "Caption → image", "Sum")
UNI = ("Model", "Head", "Caption → caption", "Image → image")
RANKS = ("Model", "Head", *TASKS.values())


def _write(tmp_path, runs, comparison=None):
    path = tmp_path / "out" / "report.html"
    made_up.write(path, runs, comparison)
    return path.read_text("utf-8")


def with_metrics(report, metrics):
    """A report of other retrieval results."""
    return replace(report, results={**report.results, "retrieval": metrics})


def _without_small(row):
    return [(text, bold) for text, bold, _ in row]


def test_tables_hold_the_figures_and_the_best_is_bold(tmp_path, runs):
    page = Page(_write(tmp_path, runs))
    labels, *cross = page.table(*CROSS)
    assert [text for text, _, _ in labels] == ["R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "RSUM"]
    assert _without_small(cross[0]) == [
        *[("plain-0", False), ("40.0", False), ("50.0", False), ("60.0", False)],
        *[("36.0", True), ("46.0", True), ("56.0", True), ("288.0", False)],
    ]
    assert _without_small(cross[1]) == [
        *[("cusa-0", False), ("43.2", True), ("53.2", True), ("63.2", True)],
        *[("35.0", False), ("45.0", False), ("55.0", False), ("294.6", True)],
    ]
    assert [small for _, _, small in cross[1]] == [
        *["", "42.7–43.7", "52.7–53.7", "62.7–63.7"],
        *["34.5–35.5", "44.5–45.5", "54.5–55.5", "294.1–295.1"],
    ]
    uni = page.table(*UNI)[1:]
    assert [row[1][::2] for row in uni] == [
        ("cross", ""),
        ("uni", "not trained by this loss"),
        ("cross", ""),
        ("uni", ""),
    ]
    assert [row[2][:2] for row in uni] == [
        ("20.0", False),
        ("21.0", False),
        ("25.0", False),
        ("26.0", True),
    ]
    assert [text for text, _, _ in uni[3][5:]] == ["50.0", "33.3", "22.2"]
    truth = page.table("Model", "Image → caption", "Caption → image")[1:]
    assert [text for text, _, _ in truth[1]] == [
        "cusa-0",
        "71.0",
        "61.0",
        "51.0",
        "72.0",
        "62.0",
        "52.0",
    ]
    assert all(
        bold for row in truth for _, bold, _ in row[1:]
    )  # equal as printed: both are the best


def test_the_lowest_rank_is_the_best_and_of_ties_none(tmp_path, runs):
    better = copy.deepcopy(runs[1].metrics)
    better["heads"]["cross"]["retrieval"]["i2t"] |= {"median_rank": 1.5, "mean_rank": 200.5}
    page = Page(_write(tmp_path, [runs[0], with_metrics(runs[1], better)]))
    rows = page.table(*RANKS)[1:]
    assert [row[2:5] for row in (rows[0], rows[2])] == [
        [("2.0", False, ""), ("1,500.2", False, ""), ("3", False, "")],
        [("1.5", True, ""), ("200.5", True, ""), ("3", False, "")],
    ]


def test_every_protocol_of_coco_has_its_table_and_the_paper_is_never_the_best(tmp_path, runs):
    made = made_up.metrics("cusa-0", ["contrastive", "csa", "usa"], 40.0, 36.0, 20.0, coco=True)
    made["paper"] = {"host": "CLIP ViT-B/32", "method": "CUSA", "i2t_r1": 99.9, "rsum": 599.9}
    page = Page(
        _write(
            tmp_path,
            [with_metrics(runs[1], made), with_metrics(replace(runs[1], name="again"), made)],
        )
    )
    titles = page.words()
    for title in ("COCO 5K", "COCO 1K", "ECCV Caption", "CxC", "PMRP"):
        assert f"{title} cross head" in titles
    of_split, coco_5k, coco_1k, cxc = (
        t for t in page.tables if [text for text, _, _ in t[0]] == list(CROSS)
    )
    assert _without_small(of_split[4]) == [
        *[("paper: CLIP ViT-B/32, CUSA", False), ("99.9", False), *[("–", False)] * 5],
        ("599.9", False),
    ]
    assert len(of_split) == 5  # both runs are of its setting, and it is there once
    assert [text for text, _, _ in coco_5k[2]] == [
        "cusa-0",
        "40.0",
        "50.0",
        "60.0",
        "39.0",
        "49.0",
        "59.0",
        "297.0",
    ]
    assert [text for text, _, _ in coco_1k[2]] == [
        "cusa-0",
        "51.0",
        "62.0",
        "73.0",
        "51.0",
        "62.0",
        "73.0",
        "372.0",
    ]
    assert [text for text, _, _ in cxc[2]] == [
        "cusa-0",
        "42.0",
        "52.0",
        "62.0",
        "43.0",
        "53.0",
        "63.0",
        "315.0",
    ]
    eccv = next(
        t for t in page.tables if ("mAP@R", False, "") in t[1] and ("30.0", True, "") in t[2]
    )
    assert _without_small(eccv[2]) == [
        ("cusa-0", False),
        *[("20.0", True), ("30.0", True), ("60.0", True)] * 2,
    ]
    # Supplementary table 11, CLIP ViT-B/32 with CUSA.
    published = ["paper: CLIP ViT-B/32, CUSA", "29.6", "40.7", "72.0", "45.2", "53.6", "85.7"]
    assert [text for text, _, _ in eccv[4]] == published


def test_image_retrieval_has_both_heads_the_paper_and_what_was_measured(tmp_path):
    first, second = made_up.images("a", 40.0), made_up.images("b", 41.0)
    second["paper"] = {"host": "SGR", "method": "CUSA", "cub": 31.1, "average": 34.1}
    page = Page(
        _write(tmp_path, [made_up.report("a", images=first), made_up.report("b", images=second)])
    )
    names = ("CUB-200-2011", "Stanford Online Products", "In-Shop", "iNaturalist 2018")
    labels, *rows = page.table("Model", "Head", "Average", *names)
    assert [text for text, _, _ in labels] == ["R@1", *["R@1", "R-Precision", "mAP@R"] * 4]
    assert [[text for text, _, _ in row][:6] for row in rows] == [
        ["a", "cross", "41.5", "41.0", "21.0", "11.0"],
        ["a", "uni", "43.5", "43.0", "23.0", "13.0"],
        ["b", "cross", "42.5", "42.0", "22.0", "12.0"],
        ["b", "uni", "44.5", "44.0", "24.0", "14.0"],
        ["paper: SGR, CUSA", "", "34.1", "31.1", "–", "–"],
    ]
    assert [bold for _, bold, _ in rows[3]] == [False, False, *[True] * 13]
    words = page.words()
    assert (
        "CUB-200-2011: 5,924 queries, 5,923 candidates, 100 classes, "
        "24 queries without a right answer" in words
    )
    assert "sha256 1a1a1a1a1a1a." in words
    assert "Stanford Online Products: 5,924" in words
    assert "sha256 2a2a2a2a2a2a. 12 images were not there." in words
    assert "an image alone in its class counts as a miss" in words
    assert "by its position in the data, never by its rank" in words
    assert "Image retrieval" in page.words()[:40]
    assert "R@1 of images, mean of the paper's four sets, uni head" in words


def test_models_measured_on_different_data_are_told_apart(tmp_path):
    first, second = made_up.images("a", 40.0), made_up.images("b", 41.0)
    second["sets"]["cub"]["fingerprint"] = "7" * 64
    words = Page(
        _write(tmp_path, [made_up.report("a", images=first), made_up.report("b", images=second)])
    ).words()
    assert words.count("measured on different data") == 1
    assert (
        "sha256 1a1a1a1a1a1a and 777777777777. The models were measured on different data" in words
    )


def test_a_text_model_has_a_page_of_its_own_and_its_place_beside_others(tmp_path, runs):
    text = made_up.report("words", sts=made_up.sts("words", 70.0))
    page = Page(_write(tmp_path, [text]))
    labels, row = page.table("Model", "Head", "100 × Spearman")
    sets = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")
    assert [text for text, _, _ in labels] == ["Average", *sets]
    assert labels[1][2] == "1,500 pairs"
    assert [text for text, _, _ in row] == [
        "words",
        "cross",
        "73.0",
        *(f"{70 + i}.0" for i in range(7)),
    ]
    assert not any(bold for _, bold, _ in row)
    assert row[3][2] == "69.5–70.5"
    rules = page.table("Model", "Head", *made_up.SUITE_TASKS)[1]
    assert [text for text, _, _ in rules[:5]] == ["words", "cross", "69.0", "68.0", "71.0"]
    graded = page.table("Model", "Head", "Captions (STS)")[1]
    assert [text for text, _, _ in graded] == ["words", "cross", "67.0", "0.4", "66.0"]
    assert "Captions (STS): 88,054 pairs." in page.words()
    assert "Image-text retrieval" not in page.text
    both = Page(_write(tmp_path, [*runs, text]))
    assert [row[0][0] for row in both.table(*CROSS)[1:]] == ["plain-0", "cusa-0"]
    assert [row[0][0] for row in both.table("Model", "Head", "100 × Spearman")[1:]] == ["words"]


def test_headlines_are_of_the_head_to_use():
    run = made_up.report(
        "a", images=made_up.images("a", 40.0), sts=made_up.sts("a", 70.0, ("cross", "uni"))
    )
    of_run = headlines([run], make_sections([run]))[0]
    assert [headline.figure for headline in of_run] == [43.5, 74.0]
    some = made_up.images("a", 40.0)
    some["average"] = {"cross": None, "uni": None}  # a set of the paper's four is missing
    partly = [made_up.report("a", images=some)]
    [[headline]] = headlines(partly, make_sections(partly))
    assert headline.label == f"R@1 of images, {next(iter(some['sets']))}, uni head"


def test_title_and_explanation(tmp_path, runs):
    text = Page(_write(tmp_path, runs)).words()
    assert "Image-text retrieval on tiny, split test" in text
    assert "3 images, 1,234 captions, 2 models" in text
    assert "tiny, split test: 3 images, 1,234 captions, sha256 0123456789ab." in text
    assert TIES["pessimistic"] in text
    assert "95 % bootstrap intervals over queries, 1,000 samples, seed 0." in text
    facts = Page(_write(tmp_path, runs)).table("Fact", "plain-0", "cusa-0")
    facts = [[text for text, _, _ in row] for row in facts]
    assert ["Loss", "contrastive", "contrastive + csa + usa"] in facts
    assert ["Weights", "epoch 2, best checkpoint (all)"] in facts
    assert "best epoch 2, RSUM 320.0" in text
    assert "Constant temperatures: tau_soft 1." in text


@pytest.mark.parametrize("rule", ["mean", "optimistic"])
def test_the_rule_for_ties_is_the_one_that_was_used(tmp_path, runs, rule):
    of_rule = [with_metrics(run, {**run.metrics, "ties": rule}) for run in runs]
    text = Page(_write(tmp_path, of_rule)).words()
    assert TIES[rule] in text
    assert TIES["pessimistic"] not in text
    text = Page(_write(tmp_path, [runs[0], of_rule[1]])).words()
    assert f"Ties are counted by different rules here (pessimistic, {rule})" in text


def test_metrics_of_the_first_format_are_shown(tmp_path, runs):
    """Version 1.1 has no intervals, ranks, curves, ties or model."""
    old = copy.deepcopy(runs[1].metrics)
    for key in ("name", "model", "ties", "bootstrap", "split_fingerprint"):
        del old[key]
    for head in old["heads"].values():
        for part in (
            *head["retrieval"].values(),
            *head["unimodal"].values(),
            *head["truth"].values(),
        ):
            for key in (
                ("median_rank", "mean_rank", "tied", "curve", "ci")
                if isinstance(part, dict)
                else ()
            ):
                part.pop(key, None)
        del head["retrieval"]["ci"]
    page = Page(_write(tmp_path, [made_up.report("old", old)]))
    assert [text for text, _, _ in page.table(*CROSS)[1]][:2] == ["old", "43.2"]
    assert "Median" not in page.text
    assert "Recall at K" not in page.text
    assert "bootstrap" not in page.text


def test_one_run_without_truth_and_image_labels(tmp_path, runs):
    made = made_up.metrics("cusa-0", ["usa"], 43.0, 35.0, 25.0, truth=False)
    html = _write(tmp_path, [with_metrics(replace(runs[1], gallery=()), made)])
    page = Page(html)
    assert len(page.tables) == 4
    assert [len(row) for row in page.table("Model", "Head", "Caption → caption")] == [3, 5, 5]
    assert not any(bold for table in page.tables for row in table for _, bold, _ in row)
    for absent in (
        "known truth",
        "Image → image",
        "first five hits",
        "Protocols",
        "Worst failures",
        "Likely false",
    ):
        assert absent not in html


def test_runs_without_history(tmp_path, runs):
    html = _write(tmp_path, [replace(runs[0], history=()), runs[1]])
    assert "no history" in html
    html = _write(tmp_path, [replace(run, history=()) for run in runs])
    assert "Learning curves" not in html
    assert html.count("<figure") == 4  # recall at K


def test_differences_are_bold_where_they_leave_out_zero(tmp_path, runs):
    comparison, head = made_up.comparison(["plain-0", "cusa-0"]), "retrieval, cross head"
    page = Page(_write(tmp_path, runs, comparison))
    assert page.table("Figure", "plain-0", "cusa-0") == [
        [
            ("tiny test, i2t r1", False, head),
            ("40.0", False, ""),
            ("41.5", True, "+1.5 [+0.4, +2.6], p 0.012"),
        ],
        [
            ("tiny test, t2i r1", False, head),
            ("40.0", False, ""),
            ("41.5", False, "+1.5 [-1.2, +2.6], p 0.012"),
        ],
    ]
    assert "Differences from plain-0" in page.words()


def test_charts_take_the_page_colour_and_share_no_id(tmp_path, runs):
    html = _write(tmp_path, runs)
    captions = re.findall(r'<figure role="img" aria-label="([^"]*): line chart"', html)
    assert captions[:4] == [*TASKS.values()]
    assert captions[4:] == [
        "RSUM",
        "Total loss",
        "Contrastive",
        *(c for c in captions if c[:3] in ("CSA", "USA")),
        "tau",
    ]
    assert len(captions) == 10
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert "currentColor" in html
    assert "#010203" not in html


def test_nothing_is_fetched(tmp_path, runs):
    html = _write(tmp_path, runs)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(
        r"https?://|\bsrc\s*=|@import|<link|<script|<iframe|<!ENTITY", without_namespaces
    )
    assert all(
        url.startswith(("data:image/jpeg;base64,", "#"))
        for url in re.findall(r"url\(([^)]*)\)", html)
    )
    hrefs = [
        value
        for _, attrs in Page(html).tags
        for name, value in attrs.items()
        if name.endswith("href")
    ]
    assert all(value.startswith("#") for value in hrefs)
    assert "default-src 'none'" in html


def test_text_is_inert(tmp_path, runs):
    metrics = {**runs[0].metrics, "dataset": "</style><script>"}
    evil = with_metrics(replace(runs[0], name="<img onerror=x>"), metrics)
    html = _write(tmp_path, [evil, runs[1]])
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert SCRIPT in page.text
    assert f"wrong: {SCRIPT}" in [attrs.get("title") for _, attrs in page.tags]


def test_each_image_is_there_once_and_a_missing_one_is_named(tmp_path, runs):
    html = _write(tmp_path, runs)
    page = Page(html)
    assert html.count("data:image/jpeg;base64,") == 2
    shown = [
        attrs["class"] for _, attrs in page.tags if attrs.get("class", "").startswith("picture")
    ]
    # Queries: red and blue once. Hits, twice each: red, gone, blue of t2i, and red of i2i.
    assert sorted(shown) == ["picture missing"] * 2 + ["picture p0"] * 5 + ["picture p2"] * 3
    assert page.labels().count("wrong: image id-gone, which could not be read") == 2
    assert "1 image could not be read" in page.words()


def test_hits_are_marked_by_more_than_colour(tmp_path, runs):
    page = Page(_write(tmp_path, runs))
    text = page.words()
    assert "plain-0 first right answer: #2 ✗ 0.91" in text
    assert (
        "first right answer: #1,234 ✗ 0.25 a red one The right answer, at #1,234: ✓ 0.12 a red one"
        in text
    )
    assert text.count("The right answer, at") == 2  # shown where it is not among the hits
    assert "no labels · -0.13" in text
    assert "No labels say which of these belong together" in text
    assert page.labels().count("right") == 6
    assert page.labels().count("wrong") == 8
    assert page.labels().count("no label") == 2
    ids = [attrs.get("id") for _, attrs in page.tags]
    assert [i for i in ids if i in TASKS] == ["i2t", "t2i", "t2t", "i2i"]


def test_what_the_truth_knows_has_a_mark_of_its_own(tmp_path, runs):
    """Neither right nor wrong, told by a sign and a word, and explained where there is one."""
    assert "beyond its labels" not in Page(_write(tmp_path, runs)).words()
    galleries = []
    for run in runs:
        first = run.gallery[0]
        hits = tuple(
            replace(hit, is_true=bool(n) if hit.correct is False else None)
            for n, hit in enumerate(first.hits)
        )
        galleries.append((replace(first, hits=hits), *run.gallery[1:]))
    changed = [replace(run, gallery=gallery) for run, gallery in zip(runs, galleries, strict=True)]
    page = Page(_write(tmp_path, changed))
    n_true = sum(
        hit.mark == "true, but not labelled" for gallery in galleries for hit in gallery[0].hits
    )
    assert n_true > 0
    assert page.labels().count("true, but not labelled") == n_true
    assert page.text.count("≈") == n_true + 1
    assert "≈ true, by what the data set knows beyond its labels" in page.words()


def test_same_bytes_every_time(tmp_path, runs):
    assert _write(tmp_path / "a", runs) == _write(tmp_path / "b", runs)


def test_galleries_must_agree(tmp_path, runs):
    for other in (runs[1].gallery[:2], runs[1].gallery[::-1]):
        with pytest.raises(ValueError, match="plain-0, cusa-0"):
            made_up.write(tmp_path / "r.html", [runs[0], replace(runs[1], gallery=other)])
    with pytest.raises(ValueError, match="model"):
        made_up.write(tmp_path / "r.html", [])
    assert not (tmp_path / "r.html").exists()
    _write(tmp_path, [replace(runs[0], gallery=()), runs[1]])


def test_failures_and_likely_false_negatives(tmp_path, runs):
    red, blue = runs[0].gallery[0].query, runs[0].gallery[3].query
    words = [Item("text", text, None) for text in ("asked", "closest")]
    pair = FalseNegative(words[0], red, blue, words[1], 0, 11, 0.5, 0.25, 0.875, None, True)
    failures = (runs[0].gallery[2], runs[0].gallery[0])
    changed = replace(
        runs[0], failures=failures, false_negatives=(pair, replace(pair, is_true=None)), gallery=()
    )
    html = _write(tmp_path, [changed, replace(runs[1], gallery=())])
    text = Page(html).words()
    failed = text[text.index("The queries of each model") :]
    in_order = (
        "Image → caption cross head",
        "Caption → caption uni head",
    )  # of the tasks, not of the failures
    assert failed.index(in_order[0]) < failed.index(in_order[1])
    assert (
        "asked written for this one #12, 0.25 ranked above it #1, 0.50 "
        "A caption of the latter: closest" in text
    )
    assert text.count("image teacher 0.88 text teacher – model 0.50") == 2
    assert text.count("true of it, by the known truth") == 1
    assert html.count("data:image/jpeg;base64,") == 2

"""The HTML report: the right figures in the right cells, nothing fetched, nothing run, nothing twice."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cusa.eval.gallery import GalleryQuery, Hit, Item
from cusa.eval.page import thumbnail
from cusa.eval.report import MOST_POINTS, TASKS, RunReport, best_epoch, points, write_report

SCRIPT = "<script>alert('boo')</script> & \"quoted\""


class Page(HTMLParser):
    """Tables as rows of cells (text, in bold), start tags, and the rest of the text."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.text, self._cell, self._bold = [], [], "", None, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell, self._bold = "", False
        elif tag == "b":
            self._bold = True

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append((" ".join(self._cell.split()), self._bold))
            self._cell = None

    def labels(self):
        return [attrs["aria-label"] for _, attrs in self.tags if "aria-label" in attrs]


def _recalls(r1, **more):
    return {"r1": r1, "r5": r1 + 10, "r10": r1 + 20, "mean": r1 + 10, "queries": 4, "candidates": 1234, **more}


def _head(i2t, t2i, t2t, *, truth):
    head = {
        "retrieval": {"i2t": _recalls(i2t), "t2i": _recalls(t2i), "mean": 0.0, "rsum": 3.0 * (i2t + t2i) + 60},
        "unimodal": {"t2t": _recalls(t2t)},
    }
    if truth:
        head["unimodal"]["i2i"] = _recalls(50.0, r_precision=33.33, map_at_r=22.22)
        head["truth"] = {"i2t": _recalls(71.0, r_precision=61.0, map_at_r=51.0)}
        head["truth"]["t2i"] = _recalls(72.0, r_precision=62.0, map_at_r=52.0)
    return head


def _metrics(name, terms, i2t, t2i, t2t, *, truth=True):
    heads = {"cross": _head(i2t, t2i, t2t, truth=truth), "uni": _head(i2t, t2i, t2t + 1, truth=truth)}
    about = {"dataset": "tiny", "split": "test", "n_images": 3, "n_captions": 1234}
    return {"run": name, "checkpoint": "best", "epoch": 2, "loss_terms": terms, "heads": heads, **about}


def _history(terms, rsums):
    lines = []
    for epoch, rsum in enumerate(rsums, 1):
        step = {"kind": "train", "step": 10 * epoch, "epoch": epoch, "loss": 1 / epoch, "lr": 0.1}
        lines.append(step | dict.fromkeys(terms, 0.5 / epoch) | {"tau": 0.05 / epoch, "tau_soft": 1.0})
        lines.append({"kind": "val", "step": 10 * epoch, "epoch": epoch, "best": False, "rsum": rsum})
    return tuple(lines)


@pytest.fixture
def runs(tmp_path):
    """Two runs, three images of which one is missing, one query per task."""
    paths = [tmp_path / f"{name}.png" for name in ("red", "blue", "gone")]
    Image.new("RGB", (400, 200), (200, 0, 0)).save(paths[0])
    Image.new("RGBA", (8, 8), (0, 0, 200, 100)).save(paths[1])
    red, blue, gone = (Item("image", f"id-{p.stem}", p) for p in paths)
    one, two = Item("text", "a red one", None), Item("text", SCRIPT, None)
    first = (
        GalleryQuery("i2t", "cross", red, (Hit(two, 0.912, False), Hit(one, 0.5, True)), 1),
        GalleryQuery("t2i", "cross", one, (Hit(red, 0.8, True), Hit(gone, 0.7, False), Hit(blue, 0.6, False)), 0),
        GalleryQuery("t2t", "uni", two, (Hit(one, 0.25, False),), 1233),
        GalleryQuery("i2i", "uni", blue, (Hit(red, -0.126, False),), 7),
    )
    second = tuple(replace(answer, hits=answer.hits[::-1]) for answer in first)
    terms = ["contrastive", "csa", "usa"]
    return [
        RunReport("plain-0", _metrics("plain-0", terms[:1], 40.0, 36.0, 20.0), _history(terms[:1], [300, 310]), first),
        RunReport("cusa-0", _metrics("cusa-0", terms, 43.21, 35.0, 25.0), _history(terms, [305, 320, 315]), second),
    ]


def _write(tmp_path, runs):
    path = tmp_path / "out" / "report.html"
    write_report(path, runs)
    return path.read_text("utf-8")


def test_tables_hold_the_figures_and_the_best_is_bold(tmp_path, runs):
    cross, uni, truth = Page(_write(tmp_path, runs)).tables
    assert cross[2] == [
        *[("plain-0", False), ("40.0", False), ("50.0", False), ("60.0", False)],
        *[("36.0", True), ("46.0", True), ("56.0", True), ("288.0", False)],
    ]
    assert cross[3] == [
        *[("cusa-0", False), ("43.2", True), ("53.2", True), ("63.2", True)],
        *[("35.0", False), ("45.0", False), ("55.0", False), ("294.6", True)],
    ]
    assert [row[1][0] for row in uni[2:]] == ["cross", "uninot trained by this loss", "cross", "uni"]
    assert [row[2] for row in uni[2:]] == [("20.0", False), ("21.0", False), ("25.0", False), ("26.0", True)]
    assert [text for text, _ in uni[5][5:]] == ["50.0", "33.3", "22.2"]
    assert [text for text, _ in truth[3]] == ["cusa-0", "71.0", "61.0", "51.0", "72.0", "62.0", "52.0"]
    assert all(bold for row in truth[2:] for _, bold in row[1:])  # equal as printed: both are the best


def test_title_and_explanation(tmp_path, runs):
    text = " ".join(Page(_write(tmp_path, runs)).text.split())
    assert "Image-text retrieval on tiny, split test" in text
    assert "3 images, 1,234 captions, 2 runs" in text
    assert "ties count against the model" in text
    assert "contrastive + csa + usa best checkpoint, epoch 2" in text
    assert "best epoch 2, RSUM 320.0" in text
    assert "Temperatures that stay as they are: tau_soft 1." in text


def test_one_run_without_truth_and_image_labels(tmp_path, runs):
    run = replace(runs[1], metrics=_metrics("cusa-0", ["usa"], 43.0, 35.0, 25.0, truth=False), gallery=())
    html = _write(tmp_path, [run])
    page = Page(html)
    assert len(page.tables) == 2
    assert [len(row) for row in page.tables[1][2:]] == [5, 5]
    assert not any(bold for table in page.tables for row in table for _, bold in row)
    for absent in ("mAP@R", "whole truth", "Image → image", "first five hits"):
        assert absent not in html


def test_runs_without_history(tmp_path, runs):
    html = _write(tmp_path, [replace(runs[0], history=()), runs[1]])
    assert "no history" in html
    html = _write(tmp_path, [replace(run, history=()) for run in runs])
    assert "Learning curves" not in html
    assert "<figure" not in html


def test_charts_take_the_page_colour_and_share_no_id(tmp_path, runs):
    html = _write(tmp_path, runs)
    captions = re.findall(r'<figure role="img" aria-label="([^"]*): line chart"', html)
    assert captions == ["RSUM", "Total loss", "Contrastive", *(c for c in captions if c[:3] in ("CSA", "USA")), "tau"]
    assert len(captions) == 6
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert "currentColor" in html
    assert "#010203" not in html


def test_nothing_is_fetched(tmp_path, runs):
    html = _write(tmp_path, runs)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"https?://|\bsrc\s*=|@import|<link|<script|<iframe|<!ENTITY", without_namespaces)
    assert all(url.startswith(("data:image/jpeg;base64,", "#")) for url in re.findall(r"url\(([^)]*)\)", html))
    hrefs = [value for _, attrs in Page(html).tags for name, value in attrs.items() if name.endswith("href")]
    assert all(value.startswith("#") for value in hrefs)
    assert "default-src 'none'" in html


def test_text_is_inert(tmp_path, runs):
    evil = replace(runs[0], name="<img onerror=x>", metrics={**runs[0].metrics, "dataset": "</style><script>"})
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
    shown = [attrs["class"] for _, attrs in page.tags if attrs.get("class", "").startswith("picture")]
    # Queries: red and blue once. Hits, twice each: red, gone, blue of t2i, and red of i2i.
    assert sorted(shown) == ["picture missing"] * 2 + ["picture p0"] * 5 + ["picture p2"] * 3
    assert page.labels().count("wrong: image id-gone, which could not be read") == 2
    assert "1 image could not be read" in " ".join(page.text.split())


def test_hits_are_marked_by_more_than_colour(tmp_path, runs):
    page = Page(_write(tmp_path, runs))
    text = " ".join(page.text.split())
    assert "plain-0 first right answer: #2 ✗ 0.91" in text
    assert "first right answer: #1,234" in text
    assert "✗ -0.13" in text
    assert page.labels().count("right") == 4
    assert page.labels().count("wrong") == 10
    ids = [attrs.get("id") for _, attrs in page.tags]
    assert [i for i in ids if i in TASKS] == ["i2t", "t2i", "t2t", "i2i"]


def test_same_bytes_every_time(tmp_path, runs):
    assert _write(tmp_path / "a", runs) == _write(tmp_path / "b", runs)


def test_galleries_must_agree(tmp_path, runs):
    for other in (runs[1].gallery[:2], runs[1].gallery[::-1]):
        with pytest.raises(ValueError, match="plain-0, cusa-0 do not show the same queries"):
            write_report(tmp_path / "r.html", [runs[0], replace(runs[1], gallery=other)])
    with pytest.raises(ValueError, match="at least one run"):
        write_report(tmp_path / "r.html", [])
    assert not (tmp_path / "r.html").exists()
    _write(tmp_path, [replace(runs[0], gallery=()), runs[1]])


def test_a_long_curve_is_averaged_in_blocks():
    lines = [{"kind": "train", "step": i, "loss": float(i % 2)} for i in range(4 * MOST_POINTS)]
    x, y = points(lines, "train", "step", "loss")
    np.testing.assert_allclose(x, 1.5 + 4 * np.arange(MOST_POINTS))
    np.testing.assert_allclose(y, 0.5)
    assert len(points(lines, "val", "step", "loss")[0]) == 0


def test_best_epoch_is_the_first_of_equals():
    history = [{"kind": "val", "epoch": e, "rsum": r} for e, r in ((1, 10.0), (2, 30.0), (3, 30.0))]
    assert best_epoch(history) == (2, 30.0)
    assert best_epoch([]) is None


def test_thumbnails(tmp_path):
    Image.effect_noise((300, 100), 50).save(tmp_path / "grey.png")
    uri = thumbnail(tmp_path / "grey.png")
    assert uri.startswith("data:image/jpeg;base64,")
    small = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert small.size == (176, 59)
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    for bad in ("text.jpg", "empty.jpg", "none.jpg", ".", "a\0b"):
        assert thumbnail(tmp_path / bad) is None

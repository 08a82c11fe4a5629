"""The report as a browser shows it: headless Chromium, a phone's width and a desk's, no network.

A window of Chromium is never as narrow as a phone. So a page of our own shows the report,
unchanged, in a frame of the wanted size, looks into the frame when it is loaded, and writes what it
finds into its own title, which Chromium prints.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from importlib import resources

import pytest

from cusa.eval.report.disagreements import Disagreement
from cusa.eval.report.failures import FalseNegative
from cusa.eval.report.gallery import GalleryHit, GalleryQuery, Item
from cusa.eval.report.paired_differences import Difference, SuiteDifferences
from tests.eval import made_up
from tests.eval.report.test_model_facts import RUN
from tests.helpers import make_images

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")

PHONE, DESK = (360, 800), (1280, 900)

LOOK = """
onload = async () => {
  const view = frames[0], page = view.document, root = page.documentElement;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const rules = [...page.styleSheets].flatMap(sheet => [...sheet.cssRules]);
  const backgrounds = rules.map(rule => rule.style ? rule.style.backgroundImage : "");
  const uris = backgrounds.map(text => /url\\("(.*)"\\)/.exec(text)).filter(Boolean);
  const decoded = await Promise.all(uris.map(([, uri]) => new Promise(done => {
    const image = new Image();
    image.onload = () => done(image.naturalWidth);
    image.onerror = () => done(0);
    image.src = uri;
  })));
  const pictures = [...page.querySelectorAll(".picture:not(.missing)")];
  const unseen = pictures.filter(p => view.getComputedStyle(p).backgroundImage === "none");
  const outside = [...page.body.querySelectorAll("*")].filter(
    e => !e.closest(".scroll, svg, .unseen")
      && e.getBoundingClientRect().right > view.innerWidth + 0.5);
  const targets = [...page.querySelectorAll("nav a")].map(a => a.getAttribute("href").slice(1));
  const chart = page.querySelector("figure svg");
  document.title = JSON.stringify({
    width: view.innerWidth,
    content: root.scrollWidth,
    outside: outside.map(e => e.outerHTML.slice(0, 100)),
    decoded,
    pictures: pictures.length,
    unseen: unseen.length,
    scrolled: [...page.querySelectorAll(".scroll")].map(e => e.scrollWidth > e.clientWidth),
    headings: [...page.querySelectorAll("h2[id], h3[id]")].map(e => e.id),
    links: targets.map(id => page.getElementById(id) !== null),
    first_screen: page.querySelector("nav")?.getBoundingClientRect().bottom,
    tables: [...page.querySelectorAll("table")].map(table => Boolean(
      table.caption && table.caption.textContent.trim()
      && [...table.querySelectorAll("th")].every(th => th.scope && th.textContent.trim())
      && table.closest("[role=region][aria-label][tabindex='0']"))),
    tall: chart === null ? 0 : chart.getBoundingClientRect().height,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
    page: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color,
  });
};
"""


@dataclass(frozen=True)
class Seen:
    """What the page found in the frame, and what Chromium wrote to its console."""

    found: dict
    console: list[str]


def look_at(page, folder, size, *, dark=False):
    """Show an HTML file in a frame of this size."""
    text = html.escape(page.read_text("utf-8"), quote=True)
    frame = (
        f'<iframe style="border:0;width:{size[0]}px;height:{size[1]}px" srcdoc="{text}"></iframe>'
    )
    folder.mkdir()
    around = folder / "around.html"
    around.write_text(
        f'<!doctype html><meta charset="utf-8"><script>{LOOK}</script>{frame}', "utf-8"
    )
    options = [
        *(
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
        ),
        *(
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
        ),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
        *(
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            f"--window-size={size[0]},{size[1]}",
        ),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    command = [CHROMIUM, *options, "--dump-dom", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(
        r"<title>(.*?)</title>", done.stdout[: done.stdout.index("<iframe")], re.DOTALL
    )
    assert title, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(json.loads(html.unescape(title[1])), console)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with every section: two runs, one with a long name, and a text model.

    Of its twelve images, one is missing.
    """
    folder = tmp_path_factory.mktemp("report")
    names = make_images(folder / "images", 11)
    images = [Item("image", name, folder / "images" / name) for name in (*names, "not-there.jpg")]
    texts = [
        Item("text", f"caption {i} of " + "a-word-that-does-not-end" * (1 + 3 * (i == 0)), None)
        for i in range(6)
    ]
    gallery = tuple(
        GalleryQuery(
            *(task, "cross", texts[0] if task[0] == "t" else images[0]),
            tuple(
                GalleryHit(item, 0.5, rank is not None and i == rank)
                for i, item in enumerate(of[1:6])
            ),
            *(rank, None if rank is None else GalleryHit(of[0], 0.25, True)),
        )
        for task, of, rank in (
            ("i2t", texts, 3),
            ("t2i", images[6:], 1200),
            ("t2t", texts, 7),
            ("i2i", images, None),
        )
    )
    pair = FalseNegative(
        texts[0], images[0], images[1], texts[1], 0, 11, 0.5, 0.25, 0.875, 0.75, True
    )
    terms = ["contrastive", "csa", "usa"]
    pairs = ((gallery[1], gallery[1]),)
    disagreement = Disagreement("t2i", 3, 1, 2, 4, pairs, pairs)
    runs = []
    for number, name in enumerate(("plain", "a-name-without-an-end-" * 4)):
        metrics = made_up.metrics(name, terms, 40.0 + number, 36.0, 20.0, coco=True)
        if number == 0:
            metrics["paper"] = {"host": "CLIP ViT-B/32", "method": "CUSA", "rsum": 432.1}
        runs.append(
            made_up.report(
                name,
                metrics,
                made_up.images(name, 40.0),
                made_up.sts(name, 70.0, ("cross", "uni")),
                history=made_up.history(terms, [300, 310]),
                gallery=gallery,
                failures=gallery[:3],
                false_negatives=(pair,) * 3,
                disagreements=(disagreement,) if number else (),
            )
        )
    page = folder / "report.html"
    made_up.write(
        page,
        [*runs, made_up.report("words", sts=made_up.sts("words", 72.5))],
        made_up.comparison(["plain", "b"]),
    )
    return page


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_page_fits_and_asks_for_nothing(report, tmp_path, size):
    seen = look_at(report, tmp_path / "look", size)
    found = seen.found
    assert seen.console == []
    assert found["fetched"] == []
    assert found["width"] == size[0]
    assert found["content"] <= size[0]
    assert found["outside"] == []
    assert any(found["scrolled"]) is True  # wide tables scroll within themselves
    assert len(found["decoded"]) == 11
    assert min(found["decoded"]) > 0
    assert found["pictures"] > 40
    assert found["unseen"] == 0
    suites = ["tables", "protocols", "images", "sts", "cxc", "recalls", "curves", "comparison"]
    assert found["headings"] == [
        *suites,
        "gallery",
        "i2t",
        "t2i",
        "t2t",
        "i2i",
        "disagreements",
        "failures",
        "negatives",
    ]
    assert len(found["links"]) == 15
    assert all(found["links"])
    assert len(found["tables"]) > 10
    assert all(found["tables"])
    assert 100 < found["tall"] < 400


def test_the_first_screen_says_what_was_compared(tmp_path):
    """Three runs with all their facts, and differences, at 1280 x 800."""
    reports = []
    for name in ("contrastive", "cusa", "another-run"):
        metrics = made_up.metrics(name, ["contrastive", "csa"], 40.0, 36.0, 20.0)
        metrics["model"] = {**RUN, "loss_terms": ["contrastive", "csa"], "weights_sha256": name}
        reports.append(made_up.report(name, metrics))
    figures = {("tiny test", "rsum"): Difference(1.5, -0.5, 3.5)}
    differences = {"retrieval": SuiteDifferences("contrastive", "cross", figures)}
    compared = [reports[0], *(replace(run, differences=differences) for run in reports[1:])]
    page = tmp_path / "report.html"
    made_up.write(page, compared)
    seen = look_at(page, tmp_path / "look", (1280, 800))
    assert seen.found["first_screen"] < 800
    assert seen.found["content"] <= 1280


def test_dark_where_the_reader_wants_it(report, tmp_path):
    light, dark = (look_at(report, tmp_path / str(d), PHONE, dark=d).found for d in (False, True))
    assert (light["page"], light["ink"]) == ("rgb(255, 255, 255)", "rgb(28, 32, 36)")
    assert (dark["page"], dark["ink"]) == ("rgb(20, 23, 27)", "rgb(228, 231, 234)")


def test_a_page_of_a_text_model_alone(tmp_path):
    page = tmp_path / "report.html"
    made_up.write(page, [made_up.report("words", sts=made_up.sts("words", 72.5))])
    seen = look_at(page, tmp_path / "look", PHONE)
    assert seen.console == []
    assert seen.found["content"] <= PHONE[0]
    assert seen.found["headings"] == ["sts", "cxc"]


def test_a_bad_page_is_found_out(tmp_path):
    """What the other tests look for can be seen."""
    page = tmp_path / "bad.html"
    style = "<style>.p0 { background-image: url(data:image/jpeg;base64,AAAA) }</style>"
    wide = '<img alt="" src="http://example.invalid/x.png"><div style="width: 700px">wide</div>'
    body = f'{style}<body>{wide}<div class="picture"></div><script>console.error("boo")</script>'
    page.write_text(f"<!doctype html>{body}")
    seen = look_at(page, tmp_path / "look", PHONE)
    assert len(seen.console) == 1
    assert "boo" in seen.console[0]
    assert seen.found["fetched"] == ["http://example.invalid/x.png"]
    assert seen.found["content"] > 700
    assert len(seen.found["outside"]) == 1
    assert seen.found["decoded"] == [0]
    assert seen.found["unseen"] == 1
    policy = re.search(
        r"<meta http-equiv[^>]*>",
        (resources.files("cusa.eval.report") / "page.html.jinja").read_text(),
    )[0]
    page.write_text(f"<!doctype html>{policy}{body}")
    console = "".join(look_at(page, tmp_path / "again", PHONE).console)
    assert "Loading the image 'http://example.invalid/x.png' violates" in console
    assert "Executing inline script violates" in console

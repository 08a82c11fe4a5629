"""Inspection of soft labels: figures against loops that follow their definition; the page."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.records import Dataset, Record
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.inspection.batch_figures import (
    Agreement,
    FalseNegativeCount,
    Sharpness,
    agreement,
    count_false_negatives,
    sharpness,
)
from cusa.eval.inspection.pair_search import (
    DUPLICATE_COSINE,
    MAX_CAPTIONS,
    RANKINGS,
    draw_sample,
    same_image_cosine,
    strongest_pairs,
)
from cusa.eval.inspection.results import Settings, to_json
from cusa.eval.inspection.soft_labels import COSINES, TEMPERATURES, inspect, write_inspection
from cusa.train.loader import EpochOrder
from tests.helpers import (
    add_teacher,
    make_images,
    make_store,
    records,
    run_error,
    run_failure,
    run_ok,
    settings,
    unit_rows,
)

ODD = 'a <b>bold</b> & "quoted" <script>alert(1)</script>'


def _record(image_id, path, *captions):
    return Record(image_id, path, captions, tuple(f"{image_id}#{c}" for c in range(len(captions))))


def odd_dataset(folder, n=11, per_image=(2, 1, 7, 3), captions=None):
    """Images ``id0``, ``id1``, … with 1 to 7 captions each, or with the given ones."""
    counts = [per_image[i % len(per_image)] for i in range(n)]
    texts = captions or [[f"image {i} text {c}" for c in range(counts[i])] for i in range(n)]
    records = tuple(_record(f"id{i}", f"{i:03d}.jpg", *t) for i, t in enumerate(texts))
    return Dataset("odd", folder / "images", {"train": records}, {})


def make_odd_store(folder, skipped=(), **options):
    """A store of that with its images and random rows, by teachers ``vision`` and ``words``.

    ``vision`` skipped some images.
    """
    dataset = odd_dataset(folder, **options)
    records = dataset.splits["train"]
    n, n_texts = len(records), sum(len(r.captions) for r in records)
    make_images(folder / "images", n)
    index = folder / "odd.h5"
    add_teacher(
        index,
        dataset,
        "vision",
        settings("image", 6),
        {"train": unit_rows(n, 6, 1)},
        skipped=skipped,
    )
    add_teacher(index, dataset, "words", settings("text", 6), {"train": unit_rows(n_texts, 6, 2)})
    return index


def _open(index):
    store = EmbeddingStore(index)
    return store, store.embeddings("vision", "train"), store.embeddings("words", "train")


def _unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _batch(seed=0, b=17):
    """Cosines of two teachers and image ids; some pairs share their image."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, b - 5, b)
    images, texts = _unit(rng.normal(size=(b, 3)))[ids], _unit(rng.normal(size=(b, 4)))
    return images @ images.T, texts @ texts.T, ids


def _softmax(row):
    e = [math.exp(x - max(row)) for x in row]
    return [x / sum(e) for x in e]


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_sharpness_by_its_definition(tau):
    s, _, ids = _batch()
    perplexity, own, other = [], [], []
    for i, row in enumerate(s):
        p = _softmax([x / tau for x in row])
        perplexity.append(math.exp(-sum(x * math.log(x) for x in p if x > 0)))
        own.append(p[i])
        other.append(max(p[j] for j in range(len(p)) if ids[j] != ids[i]))
    found = sharpness(torch.tensor(s), torch.tensor(ids), tau)
    for value, expected in (
        (found.perplexity, perplexity),
        (found.own_label, own),
        (found.greatest_other_label, other),
    ):
        assert value == pytest.approx(np.mean(expected))


def test_sharpness_at_the_ends():
    ids = torch.arange(4)
    flat = sharpness(torch.ones(4, 4), ids, 1.0)
    assert (flat.perplexity, flat.own_label, flat.greatest_other_label) == pytest.approx(
        (4, 0.25, 0.25)
    )
    hard = sharpness(torch.eye(4), ids, 1e-4)
    assert (hard.perplexity, hard.own_label, hard.greatest_other_label) == pytest.approx((1, 1, 0))
    assert math.isnan(
        sharpness(torch.eye(4), torch.zeros(4, dtype=torch.int64), 1.0).greatest_other_label
    )


def test_alike_by_its_definition():
    s, _, ids = _batch()
    for cosine in (-2.0, 0.1, *COSINES):
        n = len(ids)
        found = [
            (i, j)
            for i in range(n)
            for j in range(i + 1, n)
            if ids[i] != ids[j] and s[i, j] >= cosine
        ]
        result = count_false_negatives(torch.tensor(s), torch.tensor(ids), cosine)
        assert result == FalseNegativeCount(
            len(found), pytest.approx(len({i for two in found for i in two}) / n)
        )
    assert result.pairs < count_false_negatives(torch.tensor(s), torch.tensor(ids), 0.1).pairs


def _mean_rank(values):
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


@pytest.mark.parametrize("b", [9, 17, 40])
def test_agreement_by_its_definition(b):
    image, text, ids = _batch(1, b)
    image, text = image.round(1), text.round(1)  # many are equal
    two = [(i, j) for i in range(b) for j in range(i + 1, b) if ids[i] != ids[j]]
    x, y = ([s[i, j] for i, j in two] for s in (image, text))
    overlap, chance, kl = [], [], []
    for i in range(b):
        others = [j for j in range(b) if ids[j] != ids[i]]
        k = min(10, len(others))
        tops = [set(sorted(others, key=lambda j: (-s[i, j], j))[:k]) for s in (image, text)]
        overlap.append(len(tops[0] & tops[1]) / k)
        chance.append(k / len(others))
        p, q = _softmax(image[i]), _softmax(text[i])
        kl.append(sum(a * math.log(a / c) for a, c in zip(p, q, strict=True)))
    found = agreement(torch.tensor(image), torch.tensor(text), torch.tensor(ids))
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.spearman == pytest.approx(np.corrcoef(_mean_rank(x), _mean_rank(y))[0, 1])
    assert (found.overlap, found.chance) == pytest.approx((np.mean(overlap), np.mean(chance)))
    assert found.kl == pytest.approx(np.mean(kl))


def test_agreement_of_equal_opposite_and_constant_teachers():
    s, ids = torch.tensor(_batch(2, 30)[1]), torch.arange(30)
    same = agreement(s, s, ids)
    assert (same.pearson, same.spearman, same.overlap, same.kl) == pytest.approx((1, 1, 1, 0))
    assert agreement(s, -s, ids).spearman == pytest.approx(-1)
    # Cosines are ranked to five decimals.
    assert agreement(s, s**3, ids).spearman == pytest.approx(1, abs=1e-4)
    assert math.isnan(agreement(s, torch.ones(30, 30), ids).pearson)
    one_image = agreement(s, s, torch.zeros(30, dtype=torch.int64))
    assert all(
        math.isnan(v)
        for v in (one_image.pearson, one_image.spearman, one_image.overlap, one_image.chance)
    )


def test_what_chance_gives():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        image, text = (torch.tensor(rng.normal(size=(64, 64))) for _ in range(2))
        found.append(agreement(image, text, torch.arange(64)))
    assert np.mean([f.overlap for f in found]) == pytest.approx(found[0].chance, rel=0.05)
    assert found[0].chance == pytest.approx(10 / 63)


def test_figures_are_means_over_the_trainer_s_batches(tmp_path):
    index = make_odd_store(tmp_path, skipped=[2, 9])
    store, image, text = _open(index)
    split = store.split("train")
    pairs = [(i, c) for c, i in enumerate(split.caption_image.tolist()) if i not in (2, 9)]
    order = EpochOrder(len(pairs), 8, seed=5)
    batches = []
    for order.epoch in range(3):
        batches += list(order)
    sharp, close, same, agree = [], [], [], []
    sample = draw_sample(*np.array(pairs).T, 100, 5)
    median = same_image_cosine(text, sample)
    for numbers in batches[:7]:
        ids, captions = np.array([pairs[p] for p in numbers]).T
        s_i, s_t = (
            torch.tensor(r @ r.T) for r in (_unit(image.gather(ids)), _unit(text.gather(captions)))
        )
        ids = torch.tensor(ids)
        sharp.append(sharpness(s_i, ids, 0.1))
        close.append(count_false_negatives(s_t, ids, 0.5))
        same.append(count_false_negatives(s_t, ids, median))
        agree.append(agreement(s_i, s_t, ids))
    found = inspect(store, Settings(batch_size=8, batches=7, seed=5))
    assert len(order) * 2 < 7  # more than two epochs
    for figure, parts in (
        (found.image.sharpness[0.1], sharp),
        (found.text.false_negatives[0.5], close),
        (found.same_image_count, same),
    ):
        for name, value in vars(figure).items():
            assert value == pytest.approx(np.mean([getattr(p, name) for p in parts]), rel=1e-5), (
                name
            )
    for name in ("pearson", "spearman", "chance", "kl"):
        assert getattr(found.agreement, name) == pytest.approx(
            np.mean([getattr(p, name) for p in agree]), rel=1e-4
        )
    assert found.same_image_cosine == median
    assert (found.n_pairs, found.n_images, found.n_left_out) == (
        len(pairs),
        9,
        split.n_captions - len(pairs),
    )


def test_figures_that_a_batch_lacks_do_not_count(tmp_path):
    """Batches of 2 are often of one image only; the others' mean stays."""
    found = inspect(
        _open(make_odd_store(tmp_path, n=3, per_image=(6,)))[0], Settings(batch_size=2, batches=30)
    )
    assert 0 < found.text.sharpness[1.0].greatest_other_label < 1
    assert math.isnan(found.agreement.pearson)  # of a single pair
    assert found.agreement.overlap == found.agreement.chance == 1
    assert to_json(found)["agreement"]["pearson"] is None


def test_the_median_of_captions_of_one_image(tmp_path):
    store, _, text = _open(make_odd_store(tmp_path))
    owner = store.split("train").caption_image
    rows = _unit(text.gather(np.arange(len(text))))
    cosines = []
    for i in range(11):
        own = np.flatnonzero(owner == i)[:MAX_CAPTIONS]
        cosines += [rows[c] @ rows[d] for c in own for d in own if c < d]
    sample = draw_sample(owner, np.arange(len(owner)), 100, 0)
    for block in (1, 4, 512):
        assert same_image_cosine(text, sample, block) == pytest.approx(np.median(cosines), abs=1e-6)


def test_samples():
    images, captions = (
        np.array([4, 4, 9, 4, 2, 2, *[7] * 9]),
        np.array([0, 1, 2, 3, 8, 5, *range(20, 29)]),
    )
    everything = draw_sample(images, captions, 100, 0)
    assert everything.images.tolist() == [2, 4, 7, 9]
    assert everything.counts.tolist() == [2, 3, 5, 1]
    assert everything.captions.tolist() == [
        [5, 8, 5, 8, 5],
        [0, 1, 3, 0, 1],
        [20, 21, 22, 23, 24],
        [2] * 5,
    ]
    some = [draw_sample(images, captions, 2, seed) for seed in range(20)]
    assert len({tuple(s.images.tolist()) for s in some}) > 3
    assert all(len(set(s.images)) == 2 for s in some)
    assert draw_sample(images, captions, 2, 3).images.tolist() == some[3].images.tolist()


def _brute_force(image, text, owner, images, n):
    """Rankings of pairs of image rows, by loops."""
    a, b = _unit(image.gather(np.arange(len(image)))), _unit(text.gather(np.arange(len(text))))
    scores = {ranking: [] for ranking in RANKINGS}
    for i in images:
        for j in images:
            if i < j:
                s_i = a[i] @ a[j]
                own = [np.flatnonzero(owner == k)[:MAX_CAPTIONS] for k in (i, j)]
                s_t = max(b[c] @ b[d] for c in own[0] for d in own[1])
                both = math.sqrt(max(s_i, 0) * max(s_t, 0))
                for ranking, s in zip(RANKINGS, (s_i, s_t, both), strict=True):
                    scores[ranking].append((-s, int(i), int(j)))
    return {ranking: [(i, j) for _, i, j in sorted(s)[:n]] for ranking, s in scores.items()}


@pytest.mark.parametrize("block", [1, 3, 4, 7, 11, 512])
@pytest.mark.parametrize("n", [1, 6])
def test_strongest_pairs_against_all_pairs(tmp_path, block, n):
    store, image, text = _open(make_odd_store(tmp_path))
    owner = store.split("train").caption_image
    for images in (np.arange(11), np.array([0, 3, 4, 5, 8, 9, 10])):
        kept = np.flatnonzero(np.isin(owner, images))
        sample = draw_sample(owner[kept], kept, 100, 0)
        found, n_duplicates = strongest_pairs(image, text, sample, n, block)
        rows = {
            r: [(int(images[i]), int(images[j])) for i, j in places] for r, places in found.items()
        }
        assert rows == _brute_force(image, text, owner, images, n)
        assert n_duplicates == 0


def test_equal_pairs_and_duplicates(tmp_path):
    """Six equal images: whatever the blocks, the first pairs come first and all are counted."""
    records = tuple(_record(f"id{i}", f"{i}.jpg", f"text {i}") for i in range(6))
    dataset = Dataset("same", tmp_path, {"train": records}, {})
    rows = np.repeat(np.eye(1, 4, dtype=np.float32), 6, axis=0)
    add_teacher(tmp_path / "s.h5", dataset, "vision", settings("image", 4), {"train": rows})
    add_teacher(tmp_path / "s.h5", dataset, "words", settings("text", 4), {"train": rows})
    store, image, text = _open(tmp_path / "s.h5")
    sample = draw_sample(np.arange(6), np.arange(6), 6, 0)
    first = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    for block in (1, 2, 4, 6):
        for n in (0, 4, 15, 99):
            found, n_duplicates = strongest_pairs(image, text, sample, n, block)
            assert all(found[ranking] == first[:n] for ranking in RANKINGS)
            assert n_duplicates == 15
    shown = inspect(store, Settings(batch_size=4, batches=2)).strongest["both"]
    assert all(pair.is_duplicate and pair.image_cosine >= DUPLICATE_COSINE for pair in shown)
    assert len(shown) == 15


def test_no_pair_twice_and_no_skipped_row(tmp_path):
    store, *_ = _open(make_odd_store(tmp_path, skipped=[0, 4]))
    found = inspect(store, Settings(batch_size=4, batches=3, pairs=1000))
    for pairs in found.strongest.values():
        ids = [tuple(item.text for item in pair.images) for pair in pairs]
        assert len(ids) == 9 * 8 / 2
        assert len({frozenset(two) for two in ids}) == len(ids)
        assert all(len(set(two)) == 2 for two in ids)
        assert not {"id0", "id4"} & {name for two in ids for name in two}
    assert found.n_searched == found.n_images == 9


def test_rows_that_another_teacher_skipped_are_left_out(tmp_path):
    """As for a student that reads files: what a teacher of the store could not read, it cannot."""
    index = make_odd_store(tmp_path)
    dataset = odd_dataset(tmp_path)
    rows = {"train": unit_rows(sum(len(r.captions) for r in dataset.splits["train"]), 5, 3)}
    add_teacher(
        index, dataset, "other", settings("text", 5), rows, skipped=[2]
    )  # the only caption of id1
    found = inspect(
        _open(index)[0], Settings(text_teacher="words", batch_size=4, batches=1, pairs=99)
    )
    assert (found.n_images, found.n_left_out) == (10, 1)
    assert "id1" not in {item.text for pair in found.strongest["image"] for item in pair.images}
    error = run_failure("store", "inspect", index)  # which of the two text teachers?
    assert isinstance(error, StoreError)
    assert (error.path, error.name) == (index, "text")


def test_shown_captions_belong_to_the_images_and_give_the_cosine(tmp_path):
    store, image, text = _open(make_odd_store(tmp_path))
    split = store.split("train")
    captions, ids = list(split.captions), list(split.image_ids)
    found = inspect(store, Settings(batch_size=4, batches=1))
    for pair in found.strongest["text"]:
        rows = [ids.index(item.text) for item in pair.images]
        places = [captions.index(caption) for caption in pair.captions]
        assert split.caption_image[places].tolist() == rows
        a, b = _unit(text.gather(places))
        c, d = _unit(image.gather(rows))
        assert (pair.text_cosine, pair.image_cosine) == pytest.approx((a @ b, c @ d), abs=1e-6)
        assert pair.fused_cosine == pytest.approx(
            math.sqrt(max(a @ b, 0) * max(c @ d, 0)), abs=1e-3
        )
    order = [pair.text_cosine for pair in found.strongest["text"]]
    assert order == sorted(order, reverse=True)


class Page(HTMLParser):
    """Start tags, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in ("td", "th", "tr") else ""

    def handle_data(self, data):
        self.text += data


def test_the_page(tmp_path):
    index = make_odd_store(tmp_path, n=4, captions=[[ODD], ["two", "three"], ["four"], ["five"]])
    (tmp_path / "images" / "003.jpg").unlink()
    out = run_ok("store", "inspect", index, "--batch-size", 3, "--batches", 4)
    path = tmp_path / "odd.inspect.html"
    assert str(path) in out
    html = path.read_text("utf-8")
    page = Page(html)
    assert "Soft labels on odd, split train" in page.text
    assert "means over 4 batches of 3 pairs" in page.text
    assert "1 of the images shown could not be read" in page.text
    assert "median over the first 5 captions of 4 images" in page.text
    assert html.count("data:image/jpeg;base64,") == 3
    assert ODD in page.text
    assert not {"b", "script", "img"} & {tag for tag, _ in page.tags}
    assert len([a for t, a in page.tags if a.get("class") == "pair"]) == 3 * 6
    assert "not be read" in html
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|\bsrc\s*=|@import|<link|<iframe", html)
    assert all(u.startswith("data:image/jpeg;base64,") for u in re.findall(r"url\(([^)]*)\)", html))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert ids == ["sharpness", "negatives", "agreement", *RANKINGS]


def test_the_page_prints_the_figures(tmp_path):
    found = inspect(_open(make_odd_store(tmp_path))[0], Settings(batch_size=4, batches=1, pairs=1))
    found = replace(
        found,
        text=replace(
            found.text,
            sharpness={1.0: Sharpness(3.14, 0.111, 0.222)},
            false_negatives={0.5: FalseNegativeCount(1234.56, 0.0625)},
        ),
        image=replace(
            found.image,
            sharpness={1.0: Sharpness(2.71, 0.333, 0.444)},
            false_negatives={0.5: FalseNegativeCount(7.0, 0.5)},
        ),
        agreement=Agreement(0.1234, -0.5678, 0.25, 0.125, 0.00321),
        n_duplicates=1234,
    )
    write_inspection(tmp_path / "p.html", found)
    text = Page((tmp_path / "p.html").read_text("utf-8")).text
    assert "1 2.7 0.333 0.444 3.1 0.111 0.222" in text
    assert "0.5 7.0 50.0 % 1,234.6 6.2 %" in text
    assert (
        "0.123 Correlation of their ranks -0.568 "
        "The 3 nearest in common 25.0 % Expected by chance 12.5 %" in text
    )
    assert "tau_s 1 0.0032" in text
    assert "there are 1,234 such pairs of images" in text


def test_one_caption_for_each_image(tmp_path):
    index = make_odd_store(tmp_path, per_image=(1,))
    out = json.loads(run_ok("store", "inspect", index, "--batch-size", 4, "--json"))
    assert out["same_image_cosine"] is None
    assert out["same_image_alike"] == {"pairs": None, "rows": None}
    html = (tmp_path / "odd.inspect.html").read_text("utf-8")
    assert "Here every image has one, so there is no such measure" in html
    assert "no measure: every image has one caption" in html
    assert "nan" not in Page(html).text
    assert " * " not in run_ok("store", "inspect", index, "--batch-size", 4)


def test_json(tmp_path):
    index = make_odd_store(tmp_path)
    out = json.loads(
        run_ok(
            "store",
            "inspect",
            index,
            "--batch-size",
            4,
            "--pairs",
            2,
            "--json",
            "--out",
            tmp_path / "new" / "x.html",
        )
    )
    assert list(out["image"]["sharpness"]) == [str(t) for t in TEMPERATURES]
    assert list(out["text"]["alike"]) == [str(c) for c in COSINES]
    assert out["settings"]["batch_size"] == 4
    assert [len(out["strongest"][ranking]) for ranking in RANKINGS] == [2, 2, 2]
    pair = out["strongest"]["both"][0]
    assert set(pair) == {"images", "captions", "image_cosine", "text_cosine", "both", "duplicate"}
    assert all(name.startswith("id") for name in pair["images"])
    assert out["page"] == str(tmp_path / "new" / "x.html")
    assert (tmp_path / "new" / "x.html").exists()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    index = make_odd_store(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ("--batch-size", 4, "--batches", 3, "--sample", 6, "--seed", seed)
        run_ok("store", "inspect", index, *arguments, "--out", tmp_path / f"{name}.html")
    a, b, c = ((tmp_path / f"{name}.html").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_without_the_image_folder(tmp_path):
    out = run_ok("store", "inspect", make_store(tmp_path), "--batch-size", 16, "--batches", 2)
    assert "80 pairs of 40 images" in out
    assert "vision" in out
    assert "could not be read" in (tmp_path / "store.inspect.html").read_text("utf-8")
    assert "of its pictures could not be read" in out
    error = run_failure("store", "inspect", tmp_path / "store.h5", "--image-root", "/nowhere")
    assert isinstance(error, SettingError)
    assert (error.path, error.name) == (Path("/nowhere"), "image_root")


def test_a_page_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    index = make_store(tmp_path)
    page = tmp_path / "file" / "x.html"
    run_error("store", "inspect", index, "--batch-size", 4, "--out", page)
    assert not list(tmp_path.rglob("*.html"))


def test_equal_captions_count_as_likely_false_negatives(tmp_path):
    """The median of two captions of one image is that of any two, whatever the rounding."""
    dataset = Dataset("equal", tmp_path, {"train": records("train", 40)})
    index = tmp_path / "store.h5"
    add_teacher(index, dataset, "vision", settings("image", 16), {"train": unit_rows(40, 16, 0)})
    add_teacher(
        index,
        dataset,
        "words",
        settings("text", 64),
        {"train": np.repeat(unit_rows(1, 64, 1), 80, axis=0)},
    )
    out = json.loads(
        run_ok(
            "store", "inspect", index, "--batch-size", 16, "--batches", 3, "--pairs", 0, "--json"
        )
    )
    assert out["same_image_alike"]["rows"] == 1.0


def test_another_image_folder(tmp_path):
    index = make_odd_store(tmp_path)
    (tmp_path / "images").rename(tmp_path / "moved")
    run_ok("store", "inspect", index, "--batch-size", 4, "--image-root", tmp_path / "moved")
    assert "could not be read" not in (tmp_path / "odd.inspect.html").read_text("utf-8")


def test_mistakes_are_one_line(tmp_path):
    index = make_store(tmp_path)
    no_split = run_failure("store", "inspect", index, "--split", "x")
    assert isinstance(no_split, StoreError)
    assert (no_split.path, no_split.name) == (index, "x")
    for modality in ("image", "text"):
        no_teacher = run_failure("store", "inspect", index, f"--{modality}-teacher", "x")
        assert isinstance(no_teacher, StoreError)
        assert (no_teacher.path, no_teacher.name) == (index, "x")
    # 128 is the default, of 80 pairs.
    assert run_failure("store", "inspect", index).name == "batch_size"
    run_error("store", "inspect", index, "--batch-size", 1)
    assert isinstance(run_failure("store", "inspect", tmp_path / "none.h5"), StoreError)
    for place in (index, tmp_path):  # the store itself, and a folder
        error = run_failure("store", "inspect", index, "--out", place)
        assert isinstance(error, SettingError)
        assert (error.path, error.name) == (place, "out")
    assert not list(tmp_path.glob("*.html"))


def test_a_store_of_one_modality_or_one_image(tmp_path):
    index = tmp_path / "s.h5"
    dataset = Dataset("one", tmp_path, {"train": (_record("a", "a.jpg", "x", "y", "z"),)}, {})
    add_teacher(index, dataset, "vision", settings("image", 4), {"train": unit_rows(1, 4, 0)})
    no_text_teacher = run_failure("store", "inspect", index)
    assert isinstance(no_text_teacher, StoreError)
    assert (no_text_teacher.path, no_text_teacher.name) == (index, "text")

    add_teacher(index, dataset, "words", settings("text", 4), {"train": unit_rows(3, 4, 0)})
    one_image = run_failure("store", "inspect", index, "--batch-size", 2)
    assert isinstance(one_image, DataError)
    assert one_image.name == "train"


def test_everything_skipped(tmp_path):
    """There is no pair to draw batches from, which is no question of their images."""
    index = make_odd_store(tmp_path, skipped=range(11))
    run_failure("store", "inspect", index, "--batch-size", 2)

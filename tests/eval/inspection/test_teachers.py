"""Teachers of a split, compared with each other and with people, against loops by definition."""

import functools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from cusa.data.errors import DataError, FileFormatError, SettingError, StoreError
from cusa.data.records import Dataset
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.inspection import teacher_comparison
from cusa.eval.inspection.results import (
    GREATEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    Settings,
)
from cusa.eval.inspection.soft_labels import format_temperature, inspect
from cusa.eval.inspection.split_teachers import SplitTeacher
from cusa.eval.inspection.teacher_comparison import seen_by_one
from tests.helpers import (
    Fault,
    add_teacher,
    make_store,
    records,
    run_failure,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)

N_IMAGES = 40
SMALL = {"batch_size": 16, "batches": 3, "pairs": 0, "sample": 8}


def _add(index, name, modality, seed, skipped=(), **transform):
    dataset = Dataset("made-up", index.parent, {"train": records("train", N_IMAGES)})
    rows = unit_rows(N_IMAGES * (2 if modality == "text" else 1), 8, seed)
    config = settings(modality, 8, transform=transform, dtype="float32")
    add_teacher(index, dataset, name, config, {"train": rows}, skipped=skipped)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two image teachers, two text teachers, a cross-modal one, of whose rows some are missing."""
    index = make_store(tmp_path_factory.mktemp("store"), {"train": N_IMAGES}, dim=8)
    _add(index, "eyes", "image", 1, skipped=[5])
    _add(index, "clip-image", "image", 2, cross_teacher="clip", logit_scale=50.0)
    _add(index, "clip-text", "text", 3, skipped=[9], cross_teacher="clip", logit_scale=50.0)
    return index


@pytest.fixture(scope="module")
def judgements(index):
    """Judged pairs of the first captions: some with their own image, some of them all No."""
    generator = np.random.default_rng(4)
    lines = []
    for caption in range(0, 24):
        own = caption // 2
        judged = generator.choice(N_IMAGES, size=4, replace=False).tolist()
        if caption % 3 == 0:
            judged = sorted({own, *judged})
        for image in judged:
            n_yes = int(generator.integers(0, 4))
            share = n_yes / 3
            caption_id = f"{own}.jpg#{caption % 2}"
            lines.append(f"{image}.jpg\t{caption_id}\t{share}\t{n_yes}\t{3 - n_yes}")
    path = index.parent / "crowd.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def inspection(index, judgements):
    chosen = {"image_teacher": "vision", "text_teacher": "words"}
    return inspect(EmbeddingStore(index), Settings(**SMALL, **chosen, judgements=judgements))


@functools.cache
def _rows(index, name):
    rows = np.asarray(EmbeddingStore(index)[name, "train"]).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _cross_entropy(index, judgements, name, tau):
    """The mean cross entropy of a teacher, written out; and the captions and the judged pairs."""
    shares = {}
    for line in judgements.read_text().splitlines():
        image, caption_id, _, n_yes, n_no = line.split("\t")
        own, number = caption_id.split(".jpg#")
        caption = 2 * int(own) + int(number)
        judged = shares.setdefault(caption, {})
        judged[int(image.removesuffix(".jpg"))] = int(n_yes) / (int(n_yes) + int(n_no))
    values, n_pairs = [], 0
    for caption, judged in shares.items():
        own = caption // 2
        labels = {own: 1.0, **judged}
        labels.pop(5, None)  # skipped
        if caption == 9 or own == 5 or len(labels) < 2 or not sum(labels.values()):
            continue
        n_pairs += sum(image in judged for image in labels)
        similarity = {}
        for image in labels:
            if name == "clip":
                rows = _rows(index, "clip-text")[caption], _rows(index, "clip-image")[image]
                similarity[image] = rows[0] @ rows[1]
            elif name in ("vision", "eyes", "clip-image"):
                rows = _rows(index, name)
                similarity[image] = rows[own] @ rows[image]
            else:
                rows = _rows(index, name)
                captions = [c for c in (2 * image, 2 * image + 1) if np.isfinite(rows[c]).all()]
                similarity[image] = np.mean([rows[caption] @ rows[c] for c in captions])
                if image == own:
                    similarity[image] = 1.0
        normalizer = sum(math.exp(s / tau) for s in similarity.values())
        total = sum(labels.values())
        value = 0.0
        for image, label in labels.items():
            value -= label / total * math.log(math.exp(similarity[image] / tau) / normalizer)
        values.append(value)
    return np.mean(values), len(values), n_pairs


@pytest.mark.parametrize("name", ["vision", "eyes", "words", "clip-text", "clip"])
def test_temperatures_by_their_definition(inspection, index, judgements, name):
    [fitted] = [fitted for fitted in inspection.temperatures if fitted.name == name]

    def cross_entropy(log_tau):
        return _cross_entropy(index, judgements, name, math.exp(log_tau))[0]

    best = minimize_scalar(cross_entropy, bounds=(math.log(0.02), math.log(9.9)), method="bounded")
    at_tau, n_captions, n_pairs = _cross_entropy(index, judgements, name, fitted.tau)
    assert (fitted.captions, fitted.pairs) == (n_captions, n_pairs)
    assert fitted.cross_entropy == pytest.approx(at_tau, rel=1e-6)
    assert fitted.cross_entropy == pytest.approx(best.fun, abs=1e-3)
    assert fitted.at_one == pytest.approx(_cross_entropy(index, judgements, name, 1.0)[0], rel=1e-6)
    assert fitted.low <= fitted.tau <= fitted.high
    assert 0 < fitted.people <= fitted.cross_entropy


def test_a_temperature_that_people_answered_with_is_recovered(tmp_path):
    """Shares that are a teacher's own soft labels at temperature 0.3."""
    index = make_store(tmp_path, {"train": N_IMAGES}, dim=8)
    rows = _rows(index, "vision")
    lines = []
    for own in range(12):
        for image in range(N_IMAGES):
            share = math.exp((rows[own] @ rows[image] - rows[own] @ rows[own]) / 0.3)
            n_yes = min(10**6, round(10**6 * share))
            cells = (f"{image}.jpg", f"{own}.jpg#0", n_yes / 10**6, n_yes, 10**6 - n_yes)
            lines.append("\t".join(map(str, cells)))
    path = tmp_path / "crowd.txt"
    path.write_text("\n".join(lines))
    inspection = inspect(EmbeddingStore(index), Settings(**SMALL, judgements=path))
    assert inspection.temperatures[0].tau == pytest.approx(0.3, rel=0.03)
    assert inspection.temperatures[0].cross_entropy - inspection.temperatures[0].people < 1e-3
    assert inspection.comparison is None  # of two teachers, the other figures say it


@pytest.mark.parametrize(("favourite", "bound"), [("own", "at most"), ("farthest", "at least")])
def test_beyond_the_temperatures_that_are_tried_there_is_a_bound(tmp_path, favourite, bound):
    """People say Yes to one image of each caption: its own, or that of the least cosine."""
    index = make_store(tmp_path, {"train": N_IMAGES}, dim=8)
    rows = _rows(index, "vision")
    lines = []
    for own in range(12):
        liked = own
        if favourite == "farthest":
            liked = int(np.argmin(rows @ rows[own]))
        for image in range(N_IMAGES):
            n_yes = 3 * (image == liked)
            cells = (f"{image}.jpg", f"{own}.jpg#0", n_yes / 3, n_yes, 3 - n_yes)
            lines.append("\t".join(map(str, cells)))
    path = tmp_path / "crowd.txt"
    path.write_text("\n".join(lines))
    inspection = inspect(EmbeddingStore(index), Settings(**SMALL, judgements=path))
    fitted = inspection.temperatures[0]
    ends = {"at most": LEAST_TEMPERATURE, "at least": GREATEST_TEMPERATURE}
    assert fitted.tau == fitted.low == fitted.high == ends[bound]
    assert format_temperature(fitted.tau).startswith(bound)
    assert format_temperature(1.0) == "1"


def test_the_comparison_reads_a_sample_that_the_split_and_the_batches_do_not_enlarge(
    index, monkeypatch
):
    monkeypatch.setattr(teacher_comparison, "MOST_IN_BATCH", 10)
    monkeypatch.setattr(teacher_comparison, "MOST_PAIRS", 25)
    n_read = Counter()
    similarity = SplitTeacher.similarity

    def counted(self, images, captions):
        n_read[self.name] += len(images)
        return similarity(self, images, captions)

    monkeypatch.setattr(SplitTeacher, "similarity", counted)
    chosen = {"image_teacher": "vision", "text_teacher": "words"}
    comparisons = []
    for seed in (0, 0, 1):
        settings_ = Settings(**{**SMALL, "batches": 20}, **chosen, seed=seed)
        comparisons.append(inspect(EmbeddingStore(index), settings_).comparison)
    assert set(n_read.values()) == {3 * 30}
    first, again, other = comparisons
    assert first == again
    assert first.pairs != other.pairs
    assert (first.batch_size, first.n_batches) == (10, 3)
    assert 15 <= first.n_images < first.n_captions <= 30


@pytest.mark.parametrize("seed", range(3))
def test_what_one_teacher_sees_alone_by_its_definition(seed):
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, 12, 24)
    first, second = (rows @ rows.T for rows in generator.normal(size=(2, 24, 3)))
    cosines = []
    for i in range(24):
        for j in range(i + 1, 24):
            if ids[i] != ids[j]:
                cosines.append((first[i, j], second[i, j]))
    median = sorted(other for _, other in cosines)
    half = (median[(len(median) - 1) // 2] + median[len(median) // 2]) / 2
    strongest = sorted(cosines, reverse=True)[: round(len(cosines) / 100)]
    expected = sum(other < half for _, other in strongest) / len(strongest)
    result = seen_by_one(torch.tensor(first), torch.tensor(second), torch.tensor(ids))
    assert result == pytest.approx(expected)
    assert seen_by_one(torch.tensor(first), torch.tensor(first), torch.tensor(ids)) == 0
    assert math.isnan(seen_by_one(torch.tensor(first), torch.tensor(second), torch.zeros(24)))


def test_every_two_teachers_are_compared(inspection):
    kinds = {(teacher.name, teacher.kind) for teacher in inspection.comparison.teachers}
    assert kinds == {
        ("vision", "image"),
        ("eyes", "image"),
        ("clip-image", "image"),
        ("words", "text"),
        ("clip-text", "text"),
        ("clip", "cross"),
    }
    assert len(inspection.comparison.pairs) == 15
    figures = {teacher.name: teacher.sharpness for teacher in inspection.comparison.teachers}
    for tau, sharpness in inspection.image.sharpness.items():
        assert figures["vision"][tau].perplexity == pytest.approx(sharpness.perplexity)
    [pair] = [
        pair
        for pair in inspection.comparison.pairs
        if {pair.first, pair.second} == {"vision", "words"}
    ]
    assert pair.agreement.spearman == pytest.approx(inspection.agreement.spearman)


def test_the_command_prints_them(index, judgements, tmp_path):
    args = (
        "--image-teacher",
        "eyes",
        "--text-teacher",
        "words",
        "--batch-size",
        16,
        "--batches",
        2,
    )
    args = (
        "store",
        "inspect",
        index,
        *args,
        "--judgements",
        judgements,
        "--out",
        tmp_path / "a.html",
    )
    out = run_ok(*args)
    assert "clip" in out
    content = json.loads(run_ok(*args, "--json"))
    assert len(content["comparison"]["pairs"]) == 15
    assert {fitted["name"] for fitted in content["temperatures"]} >= {"clip", "eyes"}
    page = (tmp_path / "a.html").read_text()
    assert 'id="teachers"' in page
    assert 'id="temperatures"' in page


def test_a_cross_modal_teacher_that_no_loss_needs_must_be_there(index, tmp_path):
    args = ("--image-teacher", "eyes", "--text-teacher", "words", "--cross-teacher", "nobody")
    fault = run_fault("store", "inspect", index, *args, "--out", tmp_path / "a.html")
    assert fault == Fault(StoreError, path=index, name="nobody")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", FileFormatError),
        ("0.jpg\t0.jpg#0\t1\t3\n", FileFormatError),
        ("0.jpg\t0.jpg#0\t1\t2\t3\n", SettingError),
        ("x.jpg\ty.jpg#0\t1\t3\t0\n", DataError),
        ("0.jpg\t0.jpg#0\t1\t3\t0\n", DataError),
        (None, FileFormatError),
    ],
)
def test_judgements_that_cannot_be_used(index, tmp_path, text, kind):
    path = tmp_path / "crowd.txt"
    if text is not None:
        path.write_text(text)
    args = (
        "--image-teacher",
        "eyes",
        "--text-teacher",
        "words",
        "--batch-size",
        16,
        "--batches",
        1,
    )
    out = ("--out", tmp_path / "a.html")
    assert type(run_failure("store", "inspect", index, *args, *out, "--judgements", path)) is kind

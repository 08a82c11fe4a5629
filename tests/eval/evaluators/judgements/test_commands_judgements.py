"""``cusa-eval retrieval --judgements``: agreement with people, and retrieval by their verdict."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import average_precision_score

from cusa.data.errors import DataError, FileFormatError, RunError, SettingError
from cusa.eval.models.any_model import load_encoder
from tests.eval.tiny import caption_id, strict
from tests.helpers import Fault, run_fault, run_ok

TEST_IMAGES = range(20, 26)


def _name(number):
    return f"{number:03d}.jpg"


@pytest.fixture
def files(here):
    """Judgements of every image with the first caption of every other: some are true of it."""
    crowd, experts = [], []
    for image in TEST_IMAGES:
        for caption in TEST_IMAGES:
            pair = f"{_name(image)}\t{_name(caption)}#0"
            n_yes = (3 * image + 5 * caption) % 4
            crowd.append(f"{pair}\t{n_yes / 3}\t{n_yes}\t{3 - n_yes}\n")
            scores = [1 + (image * caption + k) % 4 for k in range(3)]
            experts.append("\t".join([pair, *map(str, scores)]) + "\n")
    (here / "crowd.txt").write_text("".join(crowd))
    (here / "experts.txt").write_text("".join(experts))
    return "--judgements", here / "crowd.txt", "--judgements", here / "experts.txt"


def _scores(home):
    """Cosines of the test's images with its captions, computed one by one: ``[6, 12]``."""
    clip = load_encoder(str(home / "clip"), "cpu")
    images = [clip.image_rows([home / "images" / _name(n)])["cross"][0] for n in TEST_IMAGES]
    raw = {}
    for image in json.loads((home / "images" / "tiny.json").read_text())["images"]:
        for sentence in image["sentences"]:
            raw[sentence["sentid"]] = sentence["raw"]
    captions = [raw[caption_id(n, c)] for n in TEST_IMAGES for c in range(2)]
    texts = [clip.text_rows([caption])["cross"][0] for caption in captions]
    return np.stack(images).astype(np.float64) @ np.stack(texts).astype(np.float64).T


def _read(path):
    """Score and verdict by image and caption, ``[6, 6]``; read without the product's reader."""
    scores, verdict = np.zeros((6, 6)), np.zeros((6, 6), bool)
    for line in path.read_text().splitlines():
        image, caption, *cells = line.split("\t")
        row, column = int(image[:3]) - 20, int(caption[:3]) - 20
        if path.name == "crowd.txt":
            scores[row, column] = float(cells[0])
            verdict[row, column] = int(cells[1]) > int(cells[2])
        else:
            scores[row, column] = np.mean([int(cell) for cell in cells])
            verdict[row, column] = scores[row, column] >= 3
    return scores, verdict


def _expected(scores, right):
    """R@1 and average precision of each direction, in percent, by loops."""
    figures = {}
    for direction, similarity, relevant in (("i2t", scores, right), ("t2i", scores.T, right.T)):
        first = [
            row_right[row.argmax()] for row, row_right in zip(similarity, relevant, strict=True)
        ]
        average = [
            average_precision_score(row_right, row)
            for row, row_right in zip(similarity, relevant, strict=True)
        ]
        figures[direction] = 100 * np.mean(first), 100 * np.mean(average)
    return figures


def _eval(home, *args):
    return run_ok(
        "eval", *args, "--model", home / "clip", "--dataset", home / "images" / "tiny.json"
    )


def test_figures_are_those_of_loops(home, here, files):
    output = _eval(home, "retrieval", *files, "--bootstrap", 20, "--latex")
    content = strict(here / "runs/eval/clip/judgements.json")
    assert content["format"] == "cusa-judgements"
    scores = _scores(home)
    labels = np.repeat(np.eye(6, dtype=bool), 2, axis=1)
    cross = content["heads"]["cross"]
    for kind in ("crowd", "experts"):
        people, verdict = _read(here / f"{kind}.txt")
        measured = cross["judged"][kind]
        judged_scores = scores[:, ::2].ravel()
        tau = kendalltau(judged_scores, people.ravel(), variant="c").statistic
        assert measured["kendall_tau_c"] == pytest.approx(100 * tau, abs=1e-4)
        rho = spearmanr(judged_scores, people.ravel()).statistic
        assert measured["spearman"] == pytest.approx(100 * rho, abs=1e-4)
        right = labels.copy()
        right[:, ::2] |= verdict
        for direction, (r1, average_precision) in _expected(scores, right).items():
            figures = measured["retrieval"][direction]
            assert figures["r1"] == pytest.approx(r1)
            assert figures["average_precision"] == pytest.approx(average_precision)
            low, high = figures["ci"]["average_precision"]
            assert low <= average_precision <= high
        facts = content["judgements"][kind]
        assert (facts["pairs"], facts["images"], facts["captions"]) == (36, 6, 6)
        assert facts["positives"] == verdict.sum()
        assert facts["positives_beyond_labels"] == right.sum() - labels.sum()
    for direction, (r1, average_precision) in _expected(scores, labels).items():
        assert cross["labels"][direction]["r1"] == pytest.approx(r1)
        assert cross["labels"][direction]["average_precision"] == pytest.approx(average_precision)
    metrics = strict(here / "runs/eval/clip/metrics.json")
    of_labels = metrics["heads"]["cross"]["retrieval"]
    for key in ("r1", "r5", "r10", "median_rank"):
        assert cross["labels"]["i2t"][key] == of_labels["i2t"][key]
        assert cross["labels"]["t2i"][key] == of_labels["t2i"][key]
    assert cross["labels"]["rsum"] == pytest.approx(of_labels["rsum"])

    page = (here / "runs/eval/clip/report.html").read_text()
    tables = (here / "runs/eval/clip/tables.tex").read_text()
    tau_as_printed = f"{cross['judged']['crowd']['kendall_tau_c']:.1f}"
    for text in (output, page, tables):
        assert "Agreement with people" in text
        assert tau_as_printed in text


def test_models_are_compared_on_the_same_judgements(home, here, files):
    rng = np.random.default_rng(0)
    ids = [str(caption_id(n, c)) for n in TEST_IMAGES for c in range(2)]
    names = [str(900 + 7 * n) for n in TEST_IMAGES]
    for kind, rows in (("images", names), ("texts", ids)):
        np.save(f"{kind}.npy", rng.normal(size=(len(rows), 8)).astype(np.float32))
        (here / f"{kind}.txt").write_text("\n".join(rows))
    other = ("--image-embeddings", "images.npy", "--image-ids", "images.txt")
    other += ("--text-embeddings", "texts.npy", "--text-ids", "texts.txt", "--name", "random")
    _eval(home, "all", *files, *other, "--bootstrap", 5)
    run_ok("eval", "compare", "runs/eval/clip", "runs/eval/random", "--bootstrap", 20)
    rows = strict(here / "runs/eval/comparison.json")["rows"]
    own = {(row["set"], row["metric"]): row for row in rows if row["suite"] == "judgements"}
    agreement = own["tiny test crowd", "spearman"]
    assert agreement["head"] == "cross"
    for name, value in zip(("clip", "random"), agreement["values"], strict=True):
        content = strict(here / "runs/eval" / name / "judgements.json")
        assert value == content["heads"]["cross"]["judged"]["crowd"]["spearman"]
    assert ("tiny test experts", "rsum") in own
    (here / "crowd.txt").write_text(
        (here / "crowd.txt").read_text().replace("\t1.0\t3\t0", "\t0.0\t0\t3", 1)
    )
    _eval(home, "retrieval", *files, "--bootstrap", 5)
    assert run_fault("eval", "compare", "runs/eval/clip", "runs/eval/random") == Fault(
        RunError, name="judgements"
    )


def test_bad_files_are_refused_before_a_model_is_loaded(home, here, files, monkeypatch):
    def refuse(*args):
        raise AssertionError(f"{args} would be loaded")

    monkeypatch.setattr("cusa.eval.models.evaluated_models.load_encoder", refuse)
    common = ("--model", home / "clip", "--dataset", home / "images" / "tiny.json")
    (here / "bad.txt").write_text("020.jpg\t021.jpg#0\t1\t3\n")
    assert run_fault("eval", *common, "--judgements", "bad.txt") == Fault(
        FileFormatError, path=Path("bad.txt"), location="line 1"
    )
    (here / "elsewhere.txt").write_text("x.jpg\tx.jpg#0\t1\t3\t0\n")
    assert run_fault("eval", *common, "--judgements", "elsewhere.txt") == Fault(
        DataError, path=Path("elsewhere.txt")
    )
    assert run_fault(
        "eval", *common, "--judgements", "crowd.txt", "--judgements", "crowd.txt"
    ) == Fault(SettingError, name="judgements")
    assert run_fault("eval", *common, "--judgements", "none.txt") == Fault(
        FileFormatError, path=Path("none.txt")
    )

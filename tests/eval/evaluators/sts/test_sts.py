import json

import numpy as np
import pytest

from cusa.data.errors import CusaError, EmbeddingsError
from cusa.eval.evaluators.sts.measure import cosine, evaluate_sts
from cusa.eval.evaluators.sts.tasks import Pairs, StsTask
from cusa.eval.metrics.correlation import correlations, spearman
from tests.helpers import GOLDEN, Fault, fault_of

STS = json.loads((GOLDEN / "sts.json").read_text())["tasks"]
FIRST = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
SECOND = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # cosines 1, sqrt(1/2), 1, 0
GOLD = np.array([5.0, 3.0, 4.0, 0.0])


def _evaluate(task, embed):
    """Scores of what embeds sentences, and the pairs of the headline."""
    return evaluate_sts(task, embed(task.sentences))


def _golden_task(name):
    """The golden embeddings as a task, and the embedder that knows them."""
    data = np.load(GOLDEN / "sts.npz", allow_pickle=False)
    known, subsets = {}, []
    for subset in STS[name]["subsets"]:
        sides = []
        for side in "ab":
            rows = data[f"{name}__{subset}__{side}"]
            sides.append(tuple(f"{subset} {side} {i}" for i in range(len(rows))))
            known |= dict(zip(sides[-1], rows, strict=True))
        subsets.append(Pairs(*sides, data[f"{name}__{subset}__gold"], subset))
    headline = "all" if STS[name]["headline_definition"].startswith("all") else "test"
    return StsTask(name, tuple(subsets), headline), lambda sentences: np.stack(
        [known[s] for s in sentences]
    )


@pytest.mark.parametrize("name", STS)
def test_golden_figures(name):
    task, embed = _golden_task(name)
    found, _ = _evaluate(task, embed)
    want = STS[name]
    for subset in want["subsets"]:
        for kind in ("spearman", "pearson"):
            assert found["subsets"][subset][kind] == pytest.approx(
                100 * want["result"][subset][kind], abs=1e-10
            )
        assert found["subsets"][subset]["pairs"] == want["result"][subset]["nsamples"]
    for kind in ("spearman", "pearson"):
        assert found[kind] == pytest.approx(
            {k: 100 * v for k, v in want["result"]["all"][kind].items()}, abs=1e-10
        )
    assert found["headline"] == pytest.approx(100 * want["headline"], abs=1e-10)
    assert f"{found['headline']:.2f}" == want["cusa_reported_percent"]
    assert found["pairs"] == sum(want["result"][s]["nsamples"] for s in want["subsets"])
    _, pairs = _evaluate(task, embed)
    rank_correlation = spearman(pairs.similarities, pairs.human_scores)
    assert rank_correlation == pytest.approx(found["headline"], abs=1e-10)


def test_hand_computed():
    """Ranks of the cosines 3.5, 2, 3.5, 1 and of the gold 4, 2, 3, 1: covariance 4.5, variances 4.5
    and 5.
    """
    similarity = cosine(FIRST, SECOND)
    np.testing.assert_allclose(similarity, [1, 0.5**0.5, 1, 0], atol=1e-15)
    found = correlations(similarity, GOLD)
    assert found["spearman"] == pytest.approx(100 * 4.5 / (4.5 * 5) ** 0.5)
    x, y = similarity - similarity.mean(), GOLD - GOLD.mean()
    assert found["pearson"] == pytest.approx(
        100 * (x * y).sum() / ((x**2).sum() * (y**2).sum()) ** 0.5
    )
    assert found["pairs"] == 4


def test_cosines_are_of_float64():
    """Norms that overflow half precision, and a cosine that it would round to 1."""
    a = np.full((1, 4), 60000, np.float16)
    assert cosine(a, a)[0] == pytest.approx(1)
    near = cosine(np.array([[1.0, 0.0]], np.float32), np.array([[1.0, 0.01]], np.float32))
    assert near[0] == pytest.approx(1 / (1 + 1e-4) ** 0.5, abs=1e-10)


def test_rows_are_those_of_the_different_sentences():
    one = Pairs(("a", "bbb"), ("bbb", "bbb"), np.array([1.0, 2.0]), "one")
    two = Pairs(("a", "cc"), ("a", "bbb"), np.array([5.0, 0.0]), "two")
    task = StsTask("STS12", (one, two), "all")
    assert task.sentences == ["a", "bbb", "cc"]
    rows = np.array([[1.0, len(s)] for s in task.sentences])
    scores, pairs = evaluate_sts(task, rows)
    np.testing.assert_allclose(pairs.similarities[:2], [4 / 20**0.5, 1])
    assert scores["spearman"]["mean"] == pytest.approx(100)
    assert len(pairs.similarities) == 4
    for wrong_rows in (rows[:2], np.tile(rows, (2, 1)), rows[0]):
        with pytest.raises(EmbeddingsError) as found:
            evaluate_sts(task, wrong_rows)
        assert found.value.name == "STS12"


def test_means_are_plain_and_weighted_by_pairs():
    """Correlations 1 over two pairs and -1 over six."""
    low = tuple("b" * n for n in range(1, 7))
    one = Pairs(("a", "a"), ("b", "bb"), np.array([5.0, 1.0]), "one")
    two = Pairs(("a",) * 6, low, np.arange(6.0) / 2, "two")
    scores, _ = _evaluate(
        StsTask("STS13", (one, two), "all"),
        lambda sentences: np.array([[1.0, 0.0] if s == "a" else [1.0, len(s)] for s in sentences]),
    )
    assert (scores["spearman"]["mean"], scores["spearman"]["wmean"]) == (
        pytest.approx(0),
        pytest.approx(-50),
    )
    assert scores["headline_rule"] == "Spearman over all subsets, concatenated"


def test_the_headline_of_a_benchmark_is_that_of_its_test_pairs():
    def embed(sentences):
        return np.array([[1.0, len(s)] for s in sentences])

    dev = Pairs(("a", "a"), ("a", "aaaa"), np.array([0.0, 5.0]), "dev")
    test = Pairs(("a", "a"), ("a", "aaaa"), np.array([5.0, 0.0]), "test")
    both, pairs = _evaluate(StsTask("STSBenchmark", (dev, test), "test"), embed)
    assert both["headline"] == pytest.approx(100)
    assert both["headline_rule"] == "Spearman on test"
    assert pairs.human_scores is test.gold
    alone, pairs = _evaluate(StsTask("STSBenchmark", (dev,), "test"), embed)
    assert (alone["headline"], pairs) == (None, None)
    assert alone["headline_rule"] == "Spearman on test, which is missing"
    assert alone["spearman"]["all"] == pytest.approx(-100)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "pair 2, sentence 2, is not finite"),
        (np.inf, "not finite"),
        (0.0, "pair 2, sentence 2, is zero"),
    ],
)
def test_embeddings_without_a_direction(value, message):
    broken = SECOND.copy()
    broken[2] = value
    with pytest.raises(CusaError) as refused:
        cosine(FIRST, broken)
    assert fault_of(refused.value) == Fault(EmbeddingsError, location="pair 2, sentence 2")
    rows = {"x": [1.0, 0.0], "y": [value, value]}
    task = StsTask("STS12", (Pairs(("x", "x"), ("x", "y"), np.array([1.0, 2.0]), "MSRpar"),), "all")
    with pytest.raises(CusaError) as refused:
        _evaluate(task, lambda sentences: np.array([rows[s] for s in sentences]))
    assert fault_of(refused.value) == Fault(
        EmbeddingsError, location="pair 1, sentence 2", name="STS12 MSRpar"
    )


@pytest.mark.parametrize(
    ("similarity", "gold", "name"),
    [
        ([0.5, 0.5, 0.5], [1, 2, 3], "similarities"),
        ([1, 1 + 2e-16, 1 - 2e-16], [1, 2, 3], "similarities"),
        ([0.1, 0.2, 0.3], [2, 2, 2], "gold scores"),
        ([0.1, np.nan, 0.3], [1, 2, 3], "similarities"),
        ([0.1], [1], "gold scores"),
        ([0.1, 0.2], [1, 2, 3], "similarities"),
    ],
)
def test_undefined_correlations(similarity, gold, name):
    with pytest.raises(CusaError) as error:
        correlations(np.array(similarity), np.array(gold, np.float64))
    assert fault_of(error.value) == Fault(EmbeddingsError, name=name)


def test_an_encoder_that_maps_everything_to_one_point():
    task, _ = _golden_task("STS16")
    with pytest.raises(CusaError) as refused:
        _evaluate(task, lambda sentences: np.tile([0.1, 0.7, 0.2], (len(sentences), 1)))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="STS16 answer-answer")


def test_bad_shapes():
    task, _ = _golden_task("STSBenchmark")
    with pytest.raises(CusaError) as refused:
        _evaluate(task, lambda sentences: np.ones((3, 2)))
    assert fault_of(refused.value) == Fault(EmbeddingsError, name="STSBenchmark")
    with pytest.raises(CusaError) as refused:
        cosine(FIRST, SECOND[:3])
    assert fault_of(refused.value) == Fault(EmbeddingsError)

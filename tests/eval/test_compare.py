"""Models side by side: differences of what metrics.json says, paired by query."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from cusa.data.errors import CusaError, RunError
from cusa.eval.compare import compare
from cusa.eval.metrics.bootstrap import Bootstrap, interval
from cusa.eval.metrics.correlation import ScoredPairs, spearman
from cusa.eval.metrics.metric_options import Scoring, direction_figures, two_way_figures
from cusa.eval.metrics.per_query import Bounds, Rankings
from cusa.eval.metrics.ranks import RankBounds
from cusa.eval.queries import Queries
from tests.eval import made_up
from tests.helpers import Fault, fault_of

SOME = Bootstrap(400)


def _ranks(best, precisions=None):
    best = np.asarray(best)
    both = Bounds(precisions, precisions) if precisions is not None else None
    return Rankings(RankBounds(best, best), 1_000, both, both)


def _model(name, seed, hardness, uni_head="cross", **changes):
    """Retrieval whose ranks follow how hard each query is; the model's own luck is the seed's."""
    rng = np.random.default_rng(seed)
    found = {}
    for head in ("cross", "uni"):
        for part, task in (
            ("retrieval", "i2t"),
            ("retrieval", "t2i"),
            ("unimodal", "t2t"),
            ("eccv", "i2t"),
        ):
            luck = rng.normal(scale=0.4, size=len(hardness))
            ranks = np.floor(np.exp(hardness + luck) * (0.7 if head == "uni" else 1)).astype(int)
            precisions = 1 / (1 + ranks) if part == "eccv" else None
            found[f"coco test/{head}/{part}/{task}"] = _ranks(ranks, precisions)
    return Queries(
        name,
        uni_head,
        **{"ties": "pessimistic", "sets": {"coco test": "f00d"}, "per_query": found, **changes},
    )


@pytest.fixture(scope="module")
def hardness():
    return np.random.default_rng(0).normal(0.5, 1.5, 500)


def _rows(content):
    return {(r["set"], r["metric"]): r for r in content["rows"]}


def test_differences_are_those_of_the_metrics(hardness):
    base = _model("base", 1, hardness)
    others = [
        _model("better", 2, hardness - 0.3),
        _model("own uni head", 3, hardness, uni_head="uni"),
    ]
    models = [base, *others]
    content = compare([{"retrieval": m} for m in models], SOME)
    assert (content["format"], content["format_version"]) == ("cusa-comparison", [1, 0])
    assert (content["models"], content["base"]) == (["base", "better", "own uni head"], "base")
    assert content["bootstrap"] == {"samples": 400, "seed": 0, "level": 0.95}
    rows = _rows(content)
    recalls = [f"{way} r{k}" for way in ("i2t", "t2i", "t2t") for k in (1, 5, 10)]
    assert set(rows) == {("coco test", m) for m in [*recalls, "rsum"]} | {
        ("coco test eccv", f"i2t {m}") for m in ("map_at_r", "r_precision", "r1")
    }
    for (place, metric), row in rows.items():
        want = []
        for model in models:
            task, _, name = metric.partition(" ")
            if metric == "rsum":
                ways = {
                    way: model.per_query[f"coco test/cross/retrieval/{way}"]
                    for way in ("i2t", "t2i")
                }
                want.append(two_way_figures(ways)["rsum"])
                continue
            part = (
                "eccv" if place.endswith("eccv") else "unimodal" if task == "t2t" else "retrieval"
            )
            head = model.uni_head if task == "t2t" else "cross"
            want.append(direction_figures(model.per_query[f"coco test/{head}/{part}/{task}"])[name])
        assert row["values"] == pytest.approx(want, rel=1e-12)
        assert row["differences"][0] is None
        assert row["suite"] == "retrieval"
        assert row["head"] == ("uni-modal" if metric.startswith("t2t") else "cross")
        for value, found in zip(want[1:], row["differences"][1:], strict=True):
            assert found["difference"] == pytest.approx(value - want[0], abs=1e-9)
            assert found["low"] <= found["difference"] <= found["high"]
    better = rows["coco test", "rsum"]["differences"][1]
    assert better["low"] > 0
    assert better["p_two_sided"] == 1 / 400
    assert rows["coco test", "i2t r1"]["values"][0] > 5


def test_a_paired_interval_is_narrower_than_an_unpaired_one(hardness):
    """What is hard for one model is hard for the other; that part of the chance cancels."""
    models = _model("one", 1, hardness), _model("two", 2, hardness)
    row = _rows(compare([{"retrieval": m} for m in models], SOME))["coco test", "i2t r5"]
    paired = row["differences"][1]["high"] - row["differences"][1]["low"]
    hits = [
        100.0 * (m.per_query["coco test/cross/retrieval/i2t"].best.optimistic < 5) for m in models
    ]
    rng = np.random.default_rng(9)
    means = [np.array([h[rng.integers(500, size=500)].mean() for _ in range(2_000)]) for h in hits]
    low, high = interval(means[1] - means[0])
    assert paired < 0.8 * (high - low)
    # And it is the interval of the queries' own differences.
    spread = (hits[1] - hits[0]).std() / np.sqrt(500)
    assert paired == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_intervals_agree_with_each_models_own(hardness):
    """A model that misses everything, to which the difference is the other's figure: with its own
    interval.
    """
    good = _model("good", 1, hardness)
    nothing = replace(
        good, per_query={k: _ranks(np.full(500, 999), np.zeros(500)) for k in good.per_query}
    )
    rows = _rows(compare([{"retrieval": nothing}, {"retrieval": good}], SOME))
    own = direction_figures(
        good.per_query["coco test/cross/retrieval/t2i"], Scoring(bootstrap=SOME)
    )
    found = rows["coco test", "t2i r10"]["differences"][1]
    assert [found["low"], found["high"]] == pytest.approx(own["ci"]["r10"])


def test_a_model_against_itself(hardness):
    model = _model("same", 1, hardness)
    judged = ScoredPairs(np.linspace(0, 1, 40) ** 2, np.arange(40) % 6.0)
    sts = Queries("same", "cross", "pessimistic", {"STS12": "1"}, {"STS12/cross/sts": judged})
    content = compare([{"retrieval": model, "sts": sts}] * 2, Bootstrap(50))
    assert {r["suite"] for r in content["rows"]} == {"retrieval", "sts"}
    for row in content["rows"]:
        assert row["values"][0] == row["values"][1]
        assert row["differences"] == [
            None,
            {"difference": 0, "low": 0, "high": 0, "p_two_sided": 1},
        ]


def test_sentence_similarity():
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 6, 200).astype(float)
    cosines = [gold + s * rng.normal(size=200) for s in (3, 1)]
    models = []
    for name, head, found in zip("ab", ("cross", "uni"), cosines, strict=True):
        other = "uni" if head == "cross" else "cross"
        pairs = {
            f"STS12/{head}/sts": ScoredPairs(found, gold),
            f"STS12/{other}/sts": ScoredPairs(-found, gold),
        }
        models.append({"sts": Queries(name, head, "pessimistic", {"STS12": "1"}, pairs)})
    (row,) = compare(models, SOME)["rows"]
    assert (row["suite"], row["set"], row["metric"], row["head"]) == (
        "sts",
        "STS12",
        "spearman",
        "uni-modal",
    )
    assert row["values"] == pytest.approx([100 * spearmanr(c, gold).statistic for c in cosines])
    found = row["differences"][1]
    assert found["difference"] == pytest.approx(
        spearman(cosines[1], gold) - spearman(cosines[0], gold)
    )
    assert 0 < found["low"] < found["difference"] < found["high"]


def test_pairs_too_few_for_a_resample_have_no_interval():
    """With two pairs, a resample may be of one pair twice; here the only one is."""
    pairs = ScoredPairs(np.array([0.1, 0.2]), np.array([1.0, 2.0]))
    model = {
        "sts": Queries("a", "cross", "pessimistic", {"STS12": "1"}, {"STS12/cross/sts": pairs})
    }
    found = {
        str(compare([model, model], Bootstrap(1, seed))["rows"][0]["differences"][1])
        for seed in range(20)
    }
    assert found == {
        str({"difference": 0.0, "low": None, "high": None, "p_two_sided": None}),
        str({"difference": 0.0, "low": 0.0, "high": 0.0, "p_two_sided": 1.0}),
    }


def _images(name, sets, **found):
    return {"images": Queries(name, "cross", "pessimistic", sets, found)}


def test_images_are_compared_on_the_sets_that_all_have():
    ranks = np.array([0, 2, -1, 40])
    precisions = np.array([1.0, 0.5, 0.0, 0.25])
    cub = {"cub/cross/i2i": _ranks(ranks, precisions), "cub/uni/i2i": _ranks(ranks * 0, precisions)}
    more = {"my birds/cross/i2i": _ranks([0, 0])}
    models = [
        _images("a", {"cub": "1", "my birds": "2"}, **cub, **more),
        _images("b", {"cub": "1"}, **cub),
    ]
    content = compare(models, SOME)
    rows = _rows(content)
    assert {place for place, _ in rows} == {"cub"}
    # Recalls over all queries, the query without a positive being a miss; precisions over those
    # with one.
    assert rows["cub", "i2i r1"]["values"] == [25, 25]
    assert rows["cub", "i2i r10"]["values"] == [50, 50]
    assert rows["cub", "i2i r_precision"]["values"] == pytest.approx([100 * 1.75 / 3] * 2)
    assert {r["head"] for r in rows.values()} == {"uni-modal"}


@pytest.mark.parametrize(
    ("suite", "changes", "name"),
    [
        (
            "retrieval",
            {"sets": {"coco test": "beef"}},
            "retrieval",
        ),
        (
            "retrieval",
            {"sets": {"coco val": "f00d"}},
            "retrieval",
        ),
        (
            "images",
            {"sets": {"coco test": "beef"}},
            "images",
        ),
        (
            "images",
            {"sets": {"cub": "1"}, "per_query": {}},
            "figure",
        ),
        (
            "retrieval",
            {"ties": "mean"},
            "ties",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(hardness, suite, changes, name):
    models = [{suite: _model("a", 1, hardness)}, {suite: _model("b", 2, hardness, **changes)}]
    with pytest.raises(CusaError) as error:
        compare(models, SOME)
    assert fault_of(error.value) == Fault(RunError, name=name)


def test_models_without_a_suite_in_common(hardness):
    model = _model("a", 1, hardness)
    with pytest.raises(CusaError) as refused:
        compare([{"retrieval": model}, {"images": model}], SOME)
    assert fault_of(refused.value) == Fault(RunError, name="suite")
    with pytest.raises(CusaError) as refused:
        compare([{}, {"images": model}], SOME)
    assert fault_of(refused.value) == Fault(RunError, name="suite")


def test_a_comparison_without_intervals_is_shown(tmp_path):
    """Of two pairs, one draw may hold the same pair twice, which has no correlation."""
    judged = ScoredPairs(np.array([0.1, 0.2]), np.array([1.0, 2.0]))
    sts = [
        Queries(n, "cross", "pessimistic", {"STS12": "1"}, {"STS12/cross/sts": judged})
        for n in "ab"
    ]
    contents = [compare([{"sts": q} for q in sts], Bootstrap(1, seed)) for seed in range(20)]
    content = next(c for c in contents if c["rows"][0]["differences"][1]["low"] is None)
    made_up.write(tmp_path / "c.html", [made_up.report(n) for n in "ab"], content)
    assert "STS12, spearman" in (tmp_path / "c.html").read_text()

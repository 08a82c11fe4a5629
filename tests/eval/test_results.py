"""Files of results: figures and queries belong together, and later calls add to earlier ones."""

import json

import numpy as np
import pytest

from cusa.data.errors import CusaError, RunError
from cusa.eval.evaluate import make_sections
from cusa.eval.evaluators.images.known_sets import PAPER_SETS
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.queries import Queries
from cusa.eval.report.charts import recall_charts
from cusa.eval.report.latex import latex_tables
from cusa.eval.report.report import ModelReport, headlines
from cusa.eval.report.tables import TASKS
from cusa.eval.results import distinct_names, keep_results, read_queries, read_results
from tests.eval import made_up
from tests.helpers import Fault, fault_of


def _images(*names, weights="w", r1=50.0, ties="pessimistic"):
    scores = {"r1": r1, "queries": 3, "queries_with_positive": 3, "candidates": 2}
    about = {"fingerprint": "f", "classes": 2, "notes": []}
    sets = {name: {**about, "heads": {"cross": scores}} for name in names}
    model = {"weights_sha256": weights}
    common = {
        "format": "cusa-images",
        "name": "m",
        "model": model,
        "ties": ties,
        "bootstrap": None,
        "head": "cross",
    }
    return {**common, "sets": sets, "average": {"cross": None}}


def _queries(*names):
    found = {f"{name}/cross/sts": ScoredPairs(np.arange(3.0), np.arange(3.0)) for name in names}
    return Queries("m", "cross", "pessimistic", {name: f"hash of {name}" for name in names}, found)


def test_sets_measured_one_by_one_make_the_papers_average(tmp_path):
    for i, name in enumerate(PAPER_SETS):
        found, _ = keep_results(tmp_path, "images", _images(name, r1=10.0 * i), _queries(name))
        assert list(found["sets"]) == list(PAPER_SETS[: i + 1])
    assert found["average"] == {"cross": 15.0}
    assert read_results(tmp_path, "images") == found
    assert set(read_queries(tmp_path, "images").sets) == set(PAPER_SETS)
    again, _ = keep_results(tmp_path, "images", _images("cub", r1=20.0), _queries("cub"))
    assert (again["sets"]["cub"]["heads"]["cross"]["r1"], again["average"]) == (
        20.0,
        {"cross": 20.0},
    )


@pytest.mark.parametrize("other", [{"weights": "other"}, {"ties": "mean"}])
def test_other_weights_or_rules_begin_anew(tmp_path, other):
    keep_results(tmp_path, "images", _images("cub"), _queries("cub"))
    found, _ = keep_results(tmp_path, "images", _images("sop", **other), _queries("sop"))
    assert list(found["sets"]) == ["sop"]
    assert list(read_queries(tmp_path, "images").sets) == ["sop"]


def test_queries_of_other_figures_are_refused_and_measured_again(tmp_path):
    """A kill between the two writes leaves new queries beside old figures."""
    keep_results(tmp_path, "images", _images("cub"), _queries("cub"))
    old = (tmp_path / "images.json").read_bytes()
    keep_results(tmp_path, "images", _images("sop"), _queries("sop"))
    (tmp_path / "images.json").write_bytes(old)
    with pytest.raises(CusaError) as refused:
        read_queries(tmp_path, "images")
    assert fault_of(refused.value) == Fault(RunError, path=tmp_path / "images-queries.npz")
    found, _ = keep_results(tmp_path, "images", _images("inshop"), _queries("inshop"))
    assert list(found["sets"]) == ["inshop"]
    assert read_queries(tmp_path, "images").sets == {"inshop": "hash of inshop"}


def test_what_is_no_result(tmp_path):
    assert read_results(tmp_path, "sts") is None
    assert read_queries(tmp_path, "sts") is None
    for text in (
        "{",
        "[]",
        json.dumps({"format": "cusa-images", "name": "m", "model": {}}),
        '{"format": "cusa-sts"}',
    ):
        (tmp_path / "sts.json").write_text(text)
        with pytest.raises(RunError) as error:
            read_results(tmp_path, "sts")
        assert error.value.path == tmp_path / "sts.json"


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    places = [tmp_path / p for p in ("x/cusa", "y/cusa", "x/csa", "x/z/cusa", "y/z/cusa")]
    names = distinct_names(["cusa", "cusa", "csa", "cusa", "cusa"], places)
    assert names == ["x/cusa", "y/cusa", "csa", "x/z/cusa", "y/z/cusa"]
    assert distinct_names(["a", "a"], [tmp_path, tmp_path]) == ["a", "a"]  # a model beside itself


def _contents():
    """Whole contents of each suite, as cusa-eval writes them."""
    return {
        "retrieval": {
            "format": "cusa-metrics",
            **made_up.metrics("a", ["usa"], 40.0, 30.0, 20.0, coco=True),
        },
        "images": {"format": "cusa-images", **made_up.images("a", 40.0)},
        "sts": {"format": "cusa-sts", **made_up.sts("a", 70.0, ("cross", "uni"))},
    }


def _paths(content, prefix=()):
    """Where each value of nested dictionaries lies."""
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, key))


def _with(content, place, value):
    copied = json.loads(json.dumps(content))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    if value is _GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copied


_GONE = object()


_OTHERS = (_GONE, None, [], {}, "text", 1.5, {"x": {"x": "x"}}, [None])


@pytest.mark.parametrize("suite", ["retrieval", "images", "sts"])
def test_a_value_of_another_kind_is_refused_or_shown(tmp_path, suite):
    """At random places of the file: the page and the tables can be made, or the fault is named."""
    content, rng = _contents()[suite], np.random.default_rng(0)
    places, refused = list(_paths(content)), 0
    for _ in range(200):
        place, value = places[rng.integers(len(places))], _OTHERS[rng.integers(len(_OTHERS))]
        (tmp_path / EVALUATORS[suite].results_file.name).write_text(
            json.dumps(_with(content, place, value))
        )
        try:
            found = read_results(tmp_path, suite)
        except RunError as error:
            fault = error
        else:
            reports = [ModelReport("a", {suite: found}), ModelReport("b", {suite: content})]
            assert latex_tables(make_sections(reports))
            assert headlines(reports, make_sections(reports))
            if "curve" in place:
                recall_charts([report.metrics for report in reports], TASKS)
            continue
        refused += 1
        assert fault.path == tmp_path / EVALUATORS[suite].results_file.name
        assert "\n" not in str(fault)
    assert refused > 50


def test_the_place_of_a_fault_is_told(tmp_path):
    content = _contents()["retrieval"]
    content["heads"]["uni"]["retrieval"]["i2t"]["r1"] = "forty"
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(RunError) as found:
        read_results(tmp_path, "retrieval")
    assert found.value.location == "heads.uni.retrieval.i2t.r1"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": NaN}', "\xff", '{"format": "cusa-metrics", "x": ' + "9" * 5000 + "}"],
)
def test_what_no_parser_takes_is_one_line(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text, encoding="latin1")
    with pytest.raises(RunError) as found:
        read_results(tmp_path, "retrieval")
    assert found.value.path == tmp_path / "metrics.json"


def test_later_versions_may_add_keys(tmp_path):
    content = {**_contents()["sts"], "format_version": [1, 7], "more": {"of": ["what", 1]}}
    (tmp_path / "sts.json").write_text(json.dumps(content))
    assert read_results(tmp_path, "sts") == content
    (tmp_path / "sts.json").write_text(json.dumps({**content, "format_version": [2, 0]}))
    with pytest.raises(RunError):
        read_results(tmp_path, "sts")

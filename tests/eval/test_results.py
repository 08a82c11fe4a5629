"""Files of results: figures and queries belong together, and later calls add to earlier ones."""

import json

import numpy as np
import pytest

from cusa.data.errors import CusaError
from cusa.eval.queries import Judged, Queries
from cusa.eval.results import distinct_names, keep_results, read_queries, read_results
from cusa.eval.suites import PAPER_IMAGES


def _images(*names, weights="w", r1=50.0, ties="pessimistic"):
    sets = {name: {"heads": {"cross": {"r1": r1}}} for name in names}
    model = {"weights_sha256": weights}
    common = {"format": "cusa-images", "name": "m", "model": model, "ties": ties, "bootstrap": None}
    return {**common, "sets": sets, "average": {"cross": None}}


def _queries(*names):
    found = {f"{name}/cross/sts": Judged(np.arange(3.0), np.arange(3.0)) for name in names}
    return Queries("m", "cross", "pessimistic", {name: f"hash of {name}" for name in names}, found)


def test_sets_measured_one_by_one_make_the_papers_average(tmp_path):
    for i, name in enumerate(PAPER_IMAGES):
        found = keep_results(tmp_path, "images", _images(name, r1=10.0 * i), _queries(name))
        assert list(found["sets"]) == list(PAPER_IMAGES[: i + 1])
    assert found["average"] == {"cross": 15.0}
    assert read_results(tmp_path, "images") == found
    assert set(read_queries(tmp_path, "images").sets) == set(PAPER_IMAGES)
    again = keep_results(tmp_path, "images", _images("cub", r1=20.0), _queries("cub"))
    assert (again["sets"]["cub"]["heads"]["cross"]["r1"], again["average"]) == (20.0, {"cross": 20.0})


@pytest.mark.parametrize("other", [{"weights": "other"}, {"ties": "mean"}])
def test_other_weights_or_rules_begin_anew(tmp_path, other):
    keep_results(tmp_path, "images", _images("cub"), _queries("cub"))
    found = keep_results(tmp_path, "images", _images("sop", **other), _queries("sop"))
    assert list(found["sets"]) == ["sop"]
    assert list(read_queries(tmp_path, "images").sets) == ["sop"]


def test_queries_of_other_figures_are_refused_and_measured_again(tmp_path):
    """A kill between the two writes leaves new queries beside old figures."""
    keep_results(tmp_path, "images", _images("cub"), _queries("cub"))
    old = (tmp_path / "images.json").read_bytes()
    keep_results(tmp_path, "images", _images("sop"), _queries("sop"))
    (tmp_path / "images.json").write_bytes(old)
    with pytest.raises(CusaError, match=r"images-queries.npz does not belong to .*images.json; run cusa-eval images"):
        read_queries(tmp_path, "images")
    found = keep_results(tmp_path, "images", _images("inshop"), _queries("inshop"))
    assert list(found["sets"]) == ["inshop"]
    assert read_queries(tmp_path, "images").sets == {"inshop": "hash of inshop"}


def test_what_is_no_result(tmp_path):
    assert read_results(tmp_path, "sts") is None
    assert read_queries(tmp_path, "sts") is None
    for text in ("{", "[]", json.dumps({"format": "cusa-images", "name": "m", "model": {}}), '{"format": "cusa-sts"}'):
        (tmp_path / "sts.json").write_text(text)
        with pytest.raises(CusaError, match=r"sts.json is damaged, or no results of cusa-eval"):
            read_results(tmp_path, "sts")


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    places = [tmp_path / p for p in ("x/cusa", "y/cusa", "x/csa", "x/z/cusa", "y/z/cusa")]
    names = distinct_names(["cusa", "cusa", "csa", "cusa", "cusa"], places)
    assert names == ["x/cusa", "y/cusa", "csa", "x/z/cusa", "y/z/cusa"]
    assert distinct_names(["a", "a"], [tmp_path, tmp_path]) == ["a", "a"]  # a model beside itself

import json

import pytest

from cusa.data.captions import normalize_caption, normalizer
from cusa.data.errors import DataError, SettingError
from tests.helpers import GOLDEN

CASES = json.loads((GOLDEN / "captions.json").read_text())


@pytest.mark.parametrize("pair", CASES["pairs"], ids=lambda p: p["raw"][:20])
def test_golden(pair):
    assert normalize_caption(pair["raw"], CASES["max_words"]) == pair["expected"]


@pytest.mark.parametrize("case", CASES["raises"], ids=lambda c: repr(c["raw"]))
def test_golden_refusals(case):
    with pytest.raises(DataError):
        normalize_caption(case["raw"])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("\t", "\t"),  # a single white-space character survives
        ("_", "_"),
        ("a\u201cb\u201d \u2013 c", "a\u201cb\u201d \u2013 c"),  # curly quotes and dashes stay
        ("</person>", "< person>"),
        ("<PERSON>", "person"),
        ("\u0130", "i\u0307"),
    ],
)
def test_quirks(raw, expected):
    assert normalize_caption(raw) == expected


def test_words_are_cut_at_the_limit():
    assert normalize_caption("one two, three four", max_words=3) == "one two three"


def test_no_normalisation_refuses_blank_captions_only():
    assert normalizer("none")("A, b!") == "A, b!"
    with pytest.raises(DataError):
        normalizer("none")(" \n")
    with pytest.raises(SettingError):
        normalizer("nope")

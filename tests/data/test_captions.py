import json

import pytest

from cusa.data.captions import is_cut, normalize_caption, normalizer
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


@pytest.mark.parametrize("separator", [" ", ", ", "-", "\n\n"])
def test_a_caption_of_more_than_64_words_is_cut(separator):
    longest = separator.join(["w"] * 64)
    longer = f"{longest}{separator}w"
    assert normalize_caption(longer) == normalize_caption(longest)
    assert not is_cut(longest, "albef")
    assert is_cut(longer, "albef")
    assert not is_cut(longer, "none")


def test_long_words_and_punctuation_do_not_make_a_caption_too_long():
    assert not is_cut("x" * 1000, "albef")
    assert not is_cut("!" * 1000, "albef")
    assert not is_cut("w" + " " * 1000, "albef")


def test_no_normalisation_refuses_blank_captions_only():
    assert normalizer("none")("A, b!") == "A, b!"
    with pytest.raises(DataError):
        normalizer("none")(" \n")
    with pytest.raises(SettingError):
        normalizer("nope")

"""What the queries got, on disk and back."""

import zipfile

import numpy as np
import pytest

from cusa.data.errors import CusaError
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.metrics.per_query import Bounds, Rankings
from cusa.eval.metrics.ranks import RankBounds
from cusa.eval.queries import Queries, load_queries, queries_file, save_queries


def _queries():
    ranks = RankBounds(np.array([0, 3, -1]), np.array([2, 3, -1]))
    shares = Bounds(np.array([1.0, 1 / 3, 0.0]), np.array([0.5, 1 / 3, 0.0]))
    found = {
        "coco test/cross/retrieval/i2t": Rankings(ranks, 25_010),
        "coco test/cross/eccv/i2t": Rankings(
            ranks, 9, shares, Bounds(shares.optimistic / 2, shares.pessimistic / 2)
        ),
        "a: b/uni/i2i": Rankings(
            RankBounds(np.zeros(0, int), np.zeros(0, int)), 4, Bounds(np.zeros(0), np.zeros(0))
        ),
        "STS12/uni/sts": ScoredPairs(np.array([0.5, -0.25]), np.array([0.0, 5.0])),
    }
    return Queries("naïve model", "uni", "mean", {"coco test": "f00d", "a: b": "1"}, found)


def test_a_round_trip(tmp_path):
    queries = _queries()
    save_queries(tmp_path, "retrieval", queries)
    got = load_queries(tmp_path, "retrieval")
    for field in ("name", "uni_head", "ties", "sets"):
        assert getattr(got, field) == getattr(queries, field)
    assert set(got.per_query) == set(queries.per_query)
    for key, want in queries.per_query.items():
        found = got.per_query[key]
        if isinstance(want, ScoredPairs):
            np.testing.assert_array_equal(found.similarities, want.similarities)
            np.testing.assert_array_equal(found.human_scores, want.human_scores)
            continue
        assert found.candidates == want.candidates
        np.testing.assert_array_equal(np.stack(found.best), np.stack(want.best))
        for name in ("r_precision", "average_precision"):
            there, back = getattr(want, name), getattr(found, name)
            assert (back is None) == (there is None)
            if there is not None:
                np.testing.assert_array_equal(np.stack(back), np.stack(there))
    assert load_queries(tmp_path, "images") is None
    assert queries_file(tmp_path, "images").name == "images-queries.npz"


def _fails(folder):
    with pytest.raises(CusaError) as error:
        load_queries(folder, "sts")
    assert str(error.value) == f"{queries_file(folder, 'sts')} is damaged; run cusa-eval sts again"


def test_a_damaged_file_is_said_to_be(tmp_path):
    save_queries(tmp_path, "sts", _queries())
    path = queries_file(tmp_path, "sts")
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        _fails(tmp_path)
    np.savez(path, about=np.array("{}"))
    _fails(tmp_path)
    np.savez(path, about=np.array("[]"))
    _fails(tmp_path)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "STS12/uni/sts:gold"}
    np.savez(path, **arrays)
    _fails(tmp_path)


@pytest.mark.parametrize(
    ("key", "lost"),
    [
        ("coco test/cross/eccv/i2t", "r_precision"),
        ("coco test/cross/eccv/i2t", "average_precision"),
        ("coco test/cross/pmrp/t2i", "r_precision"),
    ],
)
def test_rankings_without_the_precisions_of_their_protocol_are_damaged(tmp_path, key, lost):
    shares = Bounds(np.array([1.0]), np.array([1.0]))
    precisions = {"r_precision": shares, "average_precision": shares, lost: None}
    rankings = Rankings(RankBounds(np.array([0]), np.array([0])), 3, **precisions)
    save_queries(tmp_path, "sts", Queries("m", "cross", "mean", {}, {key: rankings}))
    _fails(tmp_path)


def test_judged_pairs_in_the_place_of_rankings_are_damaged(tmp_path):
    judged = ScoredPairs(np.array([0.5, 1.0]), np.array([0.0, 5.0]))
    save_queries(
        tmp_path, "sts", Queries("m", "cross", "mean", {}, {"coco test/cross/eccv/i2t": judged})
    )
    _fails(tmp_path)


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path):
    """No traceback, wherever a disk is wrong."""
    save_queries(tmp_path, "sts", _queries())
    path = queries_file(tmp_path, "sts")
    whole = path.read_bytes()
    noticed = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            load_queries(tmp_path, "sts")
        except CusaError:
            noticed += 1
    assert noticed > 50


def _changed(path, name, array):
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez_compressed(path, **{**arrays, name: array})


_RANKS = np.array([[0, 3, -1], [2, 3, -1]])
_I2T = "coco test/cross/retrieval/i2t"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (f"{_I2T}:ranks", _RANKS.astype(float)),
        (f"{_I2T}:ranks", _RANKS[0]),
        (f"{_I2T}:ranks", _RANKS[::-1]),  # optimistic behind pessimistic
        (f"{_I2T}:ranks", _RANKS - 1),
        (f"{_I2T}:ranks", _RANKS + 25_010),  # there are 25,010 candidates
        (f"{_I2T}:clusters", np.zeros(2, int)),
        (f"{_I2T}:clusters", np.zeros(3)),
        ("coco test/cross/eccv/i2t:r_precision", np.full((2, 3), 1.5)),
        ("coco test/cross/eccv/i2t:r_precision", np.full((2, 3), np.nan)),
        ("coco test/cross/eccv/i2t:average_precision", np.zeros((2, 2))),
        ("STS12/uni/sts:gold", np.zeros(3)),
        ("STS12/uni/sts:cosines", np.array([np.inf, 0])),
        ("STS12/uni/sts:cosines", np.array(["a", "b"])),
        ("alone:ranks", _RANKS),
        ("about", np.array('{"name": "m"}')),
        ("about", np.array("[" * 100_000)),
        ("about", np.array(7)),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, name, array):
    save_queries(tmp_path, "sts", _queries())
    _changed(queries_file(tmp_path, "sts"), name, array)
    _fails(tmp_path)


def test_memory_is_bounded_by_the_size_of_the_file(tmp_path):
    """An array of a terabyte, by its header or by the archive's, in a file of a kilobyte."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 68719476736), }"
    text = header + b" " * (117 - len(header)) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)
    path = queries_file(tmp_path, "sts")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{_I2T}:ranks.npy", array)
    _fails(tmp_path)
    whole = path.read_bytes()
    declared = len(array).to_bytes(4, "little")
    path.write_bytes(whole.replace(declared, (2**32 - 2).to_bytes(4, "little")))
    _fails(tmp_path)

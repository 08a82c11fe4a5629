"""The training order of a set of tars, against plain loops over lists of pairs."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cusa.data.errors import SettingError, StoreError
from cusa.data.tars.order import SetOrder

TARS = [3, 0, 1, 40, 7, 0, 12, 1, 1, 9, 26]


def names_of_pairs(tar_pairs):
    """The (tar, number within it) of each global pair number."""
    names = []
    for tar, n_pairs in enumerate(tar_pairs):
        names += [(tar, number) for number in range(n_pairs)]
    return names


def epoch_of(order):
    return [batch.tolist() for batch in order]


def pairs_of(order):
    """All pairs of an epoch, one batch after the other."""
    return list(itertools.chain.from_iterable(epoch_of(order)))


def n_changes(values):
    """How often a value differs from the one before."""
    return sum(before != after for before, after in itertools.pairwise(values))


@st.composite
def orders(draw):
    """Keyword arguments of an order that has a batch."""
    tar_pairs = draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
    tar_pairs[draw(st.integers(0, len(tar_pairs) - 1))] = draw(st.integers(30, 90))
    return {
        "tar_pairs": tar_pairs,
        "batch_size": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 3)),
        "window": draw(st.integers(1, 25)),
        "streams": draw(st.integers(1, 3)),
        "mix_streams": draw(st.booleans()),
        "size": draw(st.integers(1, 2)),
        "epoch": draw(st.integers(0, 2)),
    }


@given(orders())
def test_every_pair_occurs_at_most_once_and_few_are_left_out(settings):
    seen = []
    lengths = set()
    for rank in range(settings["size"]):
        order = SetOrder(rank=rank, **settings)
        batches = epoch_of(order)
        assert {len(batch) for batch in batches} == {settings["batch_size"]}
        lengths |= {len(order), len(batches)}
        seen += itertools.chain.from_iterable(batches)
    n_pairs = sum(settings["tar_pairs"])
    assert len(lengths) == 1
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(n_pairs))
    most_left_out = settings["size"] * settings["streams"] * (settings["batch_size"] + 1)
    assert n_pairs - len(seen) <= most_left_out


@given(orders(), st.data())
def test_an_epoch_goes_on_from_any_step(settings, data):
    whole = epoch_of(SetOrder(**settings))
    first = data.draw(st.integers(0, len(whole)))
    assert epoch_of(SetOrder(first=first, **settings)) == whole[first:]


@given(orders())
def test_pairs_of_a_stream_come_from_one_window_of_tars_after_the_other(settings):
    """A walk through the tars in the order in which they first occur finds each window whole."""
    settings.update(streams=1, size=1)
    order = SetOrder(**settings)
    names = names_of_pairs(settings["tar_pairs"])
    remaining = list(settings["tar_pairs"])
    tars_begun = set()
    for pair in pairs_of(order):
        tar, _ = names[pair]
        tars_begun.add(tar)
        remaining[tar] -= 1
        unfinished = [begun for begun in tars_begun if remaining[begun]]
        assert len(unfinished) <= settings["window"]


@pytest.mark.parametrize("mix_streams", [False, True])
def test_streams_are_equal_segments_of_the_permuted_tars(mix_streams):
    """By a loop over all pairs in the order of the tars, as another process would see them."""
    size, streams, batch_size = 2, 2, 6
    tars = np.random.default_rng([4, 1]).permutation(np.flatnonzero(TARS)).tolist()
    all_pairs = names_of_pairs(TARS)
    line = [all_pairs.index((tar, number)) for tar in tars for number in range(TARS[tar])]
    length = len(line) // (size * streams)
    for rank in range(size):
        order = SetOrder(TARS, batch_size, 4, 3, streams, mix_streams, rank, size, epoch=1)
        segments = []
        for number in range(rank * streams, (rank + 1) * streams):
            segments.append(set(line[number * length : (number + 1) * length]))
        for step, batch in enumerate(order):
            shares = [len(segment & set(batch.tolist())) for segment in segments]
            expected = [0, 0]
            expected[step % streams] = batch_size
            assert shares == ([3, 3] if mix_streams else expected)


def test_a_window_of_all_tars_and_one_of_one():
    """With one, tars follow each other whole; with all, a batch has pairs of many."""
    names = names_of_pairs(TARS)
    one = [names[pair][0] for pair in pairs_of(SetOrder(TARS, 1, 0, window=1))]
    assert n_changes(one) == sum(n_pairs > 0 for n_pairs in TARS) - 1
    whole = pairs_of(SetOrder(TARS, 1, 0, window=1000))
    assert sorted(whole) == list(range(sum(TARS)))
    tars = [names[pair][0] for pair in whole]
    assert n_changes(tars) > 50


def test_seeds_and_epochs_differ_and_leave_out_other_pairs():
    left_out = set()
    for epoch in range(20):
        order = SetOrder(TARS, 9, seed=0, epoch=epoch)
        seen = pairs_of(order)
        left_out.add(frozenset(range(sum(TARS))) - set(seen))
    assert len(left_out) > 10
    assert epoch_of(SetOrder(TARS, 9, seed=0)) != epoch_of(SetOrder(TARS, 9, seed=1))
    assert epoch_of(SetOrder(TARS, 9, seed=0)) == epoch_of(SetOrder(TARS, 9, seed=0))


def test_an_order_follows_its_epoch():
    order = SetOrder(TARS, 9, seed=0)
    before = epoch_of(order)
    order.epoch = 1
    assert epoch_of(order) == epoch_of(SetOrder(TARS, 9, seed=0, epoch=1)) != before


def test_an_order_is_what_a_loop_over_its_windows_gives():
    """All pairs of an epoch, permuted window by window before any batch is cut."""
    size, streams, window, seed, epoch = 2, 3, 2, 7, 5
    tars = np.random.default_rng([seed, epoch]).permutation(np.flatnonzero(TARS)).tolist()
    all_pairs = names_of_pairs(TARS)
    line = [all_pairs.index((tar, number)) for tar in tars for number in range(TARS[tar])]
    length = len(line) // (size * streams)
    for rank in range(size):
        sequences = []
        for segment in range(rank * streams, (rank + 1) * streams):
            pairs = line[segment * length : (segment + 1) * length]
            tars_of_pairs = [all_pairs[pair][0] for pair in pairs]
            segment_tars = list(dict.fromkeys(tars_of_pairs))
            sequence = []
            for number, tars_of_window in enumerate(windows_of(segment_tars, window)):
                window_pairs = [pair for pair in pairs if all_pairs[pair][0] in tars_of_window]
                generator = np.random.default_rng([seed, epoch, segment, number + 1])
                sequence += [window_pairs[k] for k in generator.permutation(len(window_pairs))]
            sequences.append(sequence)
        batches = []
        while min(map(len, sequences)) >= 4:
            for sequence in sequences:
                batches.append(sequence[:4])
                del sequence[:4]
        order = SetOrder(TARS, 4, seed, window, streams, False, rank, size, epoch)
        assert epoch_of(order) == batches


def windows_of(tars, window):
    """Windows of at most so many tars, as equal as they can be."""
    n_windows = -(-len(tars) // window)
    bounds = [number * len(tars) // n_windows for number in range(n_windows + 1)]
    return [tars[start:stop] for start, stop in itertools.pairwise(bounds)]


def test_the_order_of_a_seed_stays_what_it_is():
    """Runs resume with later versions of cusa and NumPy."""
    order = SetOrder([4, 2, 5], 5, seed=1, window=2, streams=2, epoch=3)
    assert epoch_of(order) == [[3, 6, 9, 7, 4], [2, 0, 1, 10, 8]]


@pytest.mark.parametrize("n_pairs", [[], [0, 0]])
def test_no_pair_is_refused(n_pairs):
    with pytest.raises(StoreError):
        SetOrder(n_pairs, 4, seed=0)


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("mix_streams", [False, True])
def test_a_batch_that_is_larger_than_its_pairs_is_refused(streams, mix_streams):
    with pytest.raises(SettingError) as refusal:
        SetOrder([10, 9], 10, 0, streams=streams, mix_streams=mix_streams, size=2)
    assert refusal.value.name == "batch_size"


def test_a_step_of_400_million_pairs_needs_little_memory():
    """An int64 for each pair would be 3.2 GB, and 50 MB for each pair of one process."""
    tar_pairs = np.full(40_000, 10_000)
    tracemalloc.start()
    try:
        order = SetOrder(tar_pairs, 1024, 0, window=8, rank=37, size=64)
        order.first = len(order) - 2
        batches = epoch_of(order)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(order) == 400_000_000 // 64 // 1024
    assert len(set(batches[0] + batches[1])) == 2048
    assert peak < 10 * 2**20

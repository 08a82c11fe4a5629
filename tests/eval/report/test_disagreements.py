"""One model right, the other wrong: counts and choice, by a ranking that a reader can check."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.retrieval.measure import measure_split
from cusa.eval.report.disagreements import AnsweredSplit, disagreements
from cusa.eval.report.gallery import EmbeddedItems
from tests.helpers import make_store, unit_rows


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """8 images, 16 captions: those of image i are 2 i and 2 i + 1."""
    return EmbeddingStore(make_store(tmp_path_factory.mktemp("store"))).split("test")


def _answered(split, seed, tmp_path, n_images=8):
    n_texts = 2 * n_images
    embeddings = SplitEmbeddings(
        {"cross": unit_rows(n_images, 4, seed)},
        {"cross": unit_rows(n_texts, 4, seed + 1)},
        np.arange(n_images),
        np.arange(n_texts),
        np.arange(n_texts) // 2,
    )
    _, per_query = measure_split(embeddings, split, "cross")
    rankings = {task: per_query[f"cross/retrieval/{task}"] for task in ("i2t", "t2i")}
    return AnsweredSplit(EmbeddedItems(embeddings, split, tmp_path), rankings, "pessimistic")


def _ranks_by_hand(answered, task):
    """Rank of each query's best right answer, by sorting."""
    embeddings = answered.items.embeddings
    similarities = embeddings.image["cross"] @ embeddings.text["cross"].T
    if task == "t2i":
        similarities = similarities.T
    ranks = []
    for query, row in enumerate(similarities):
        order = np.argsort(-row).tolist()
        right = [2 * query, 2 * query + 1] if task == "i2t" else [query // 2]
        ranks.append(min(map(order.index, right)))
    return np.array(ranks)


def test_counts_and_choice_are_those_of_sorting(split, tmp_path):
    first, other = _answered(split, 10, tmp_path), _answered(split, 20, tmp_path)
    found = disagreements(first, other, n_shown=2)
    assert [disagreement.task for disagreement in found] == ["i2t", "t2i"]
    n_chosen = 0
    for disagreement in found:
        ranks = [_ranks_by_hand(answered, disagreement.task) for answered in (first, other)]
        right = [of_model == 0 for of_model in ranks]
        assert disagreement.both_right == (right[0] & right[1]).sum()
        assert disagreement.first_right == (right[0] & ~right[1]).sum()
        assert disagreement.second_right == (~right[0] & right[1]).sum()
        assert disagreement.n_queries == len(ranks[0])
        for shown, winner in (
            (disagreement.first_right_shown, 0),
            (disagreement.second_right_shown, 1),
        ):
            loser = 1 - winner
            candidates = np.flatnonzero(right[winner] & ~right[loser]).tolist()
            lowest = sorted(candidates, key=lambda query: -ranks[loser][query])[:2]
            names = split.image_ids if disagreement.task == "i2t" else split.captions
            assert [pair[0].query.text for pair in shown] == [names[query] for query in lowest]
            for pair, query in zip(shown, lowest, strict=True):
                assert pair[0].query == pair[1].query
                assert pair[winner].rank == 0
                assert pair[loser].rank == ranks[loser][query] > 0
                assert pair[winner].hits[0].correct
                assert not pair[loser].hits[0].correct
                n_chosen += 1
    assert n_chosen > 2


def test_a_model_agrees_with_itself(split, tmp_path):
    answered = _answered(split, 10, tmp_path)
    for disagreement in disagreements(answered, answered, n_shown=5):
        assert disagreement.first_right == disagreement.second_right == 0
        assert disagreement.first_right_shown == disagreement.second_right_shown == ()


def test_nothing_is_shown_of_none(split, tmp_path):
    first, other = _answered(split, 10, tmp_path), _answered(split, 20, tmp_path)
    for disagreement in disagreements(first, other, n_shown=0):
        assert disagreement.first_right + disagreement.second_right > 0
        assert disagreement.first_right_shown == disagreement.second_right_shown == ()


def test_models_with_other_items_are_not_compared(split, tmp_path):
    first = _answered(split, 10, tmp_path)
    assert disagreements(first, _answered(split, 20, tmp_path, n_images=7), 2) == ()
    elsewhere = SimpleNamespace(fingerprint="another")
    other = replace(first, items=replace(first.items, split=elsewhere))
    assert disagreements(first, other, 2) == ()

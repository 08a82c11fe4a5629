import numpy as np
import pytest
import torch

from cusa.data.errors import CusaError
from cusa.data.records import Dataset
from cusa.data.store import EmbeddingStore
from cusa.train.batches import EpochOrder, Loader, Pairs, open_sources
from tests.helpers import add_teacher, make_store, records, settings, unit_rows


def _sources(store, encoders=("vision", "words")):
    return open_sources(store, "train", encoders=encoders, processors=None, image_root=None, normalizer_name="albef")


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(make_store(tmp_path))


def test_every_part_of_a_pair_is_of_the_same_image_and_caption(store):
    """Rows, teachers and ids are joined by row number, in any order."""
    split, inputs = _sources(store)
    teachers = store.embeddings("vision", "train"), store.embeddings("words", "train")
    batch = Pairs(split, inputs, teachers)[[7, 70, 7, 1]]
    assert batch.image_ids.tolist() == [3, 35, 3, 0]
    images = unit_rows(40, 16, 0).astype(np.float16)
    texts = (np.repeat(unit_rows(40, 16, 0), 2, axis=0) + 0.1 * unit_rows(80, 16, 9)).astype(np.float16)
    np.testing.assert_array_equal(batch.images.numpy(), images[[3, 35, 3, 0]].astype(np.float32))
    np.testing.assert_array_equal(batch.texts.numpy(), texts[[7, 70, 7, 1]].astype(np.float32))
    np.testing.assert_array_equal(batch.teacher_image.numpy(), images[[3, 35, 3, 0]])
    np.testing.assert_array_equal(batch.teacher_text.numpy(), texts[[7, 70, 7, 1]])


def test_skipped_rows_of_any_teacher_in_use_are_never_trained_on(tmp_path):
    index = make_store(tmp_path)
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 40)})
    add_teacher(index, dataset, "holes-i", settings("image", 4), {"train": unit_rows(40, 4, 0)}, skipped=[3])
    add_teacher(index, dataset, "holes-t", settings("text", 4), {"train": unit_rows(80, 4, 0)}, skipped=[10, 79])
    store = EmbeddingStore(index)
    good = store.embeddings("vision", "train"), store.embeddings("words", "train")
    holes = store.embeddings("holes-i", "train"), store.embeddings("holes-t", "train")
    gone = {6, 7, 10, 79}  # both captions of image 3, and two captions
    as_teachers = Pairs(*_sources(store), holes)
    as_inputs = Pairs(*_sources(store, ("holes-i", "holes-t")), good)
    for pairs in (as_teachers, as_inputs):
        captions = pairs.rows(np.arange(len(pairs)))[1]
        assert captions.tolist() == sorted(set(range(80)) - gone)
        assert pairs.n_left_out == 4
    assert torch.isfinite(as_teachers[list(range(len(as_teachers)))].teacher_text).all()
    assert len(Pairs(*_sources(store), None)) == 80


def test_order_is_a_permutation_by_seed_and_epoch():
    order = EpochOrder(10, 3, seed=5)
    first = np.concatenate(list(order))
    assert len(order) == 3
    assert len(set(first.tolist())) == 9
    np.testing.assert_array_equal(first, np.concatenate(list(EpochOrder(10, 3, seed=5))))
    order.epoch = 1
    assert np.concatenate(list(order)).tolist() != first.tolist()
    with pytest.raises(CusaError, match="batch size 11 is larger than the 10 trainable pairs"):
        EpochOrder(10, 11, seed=0)


def test_workers_give_the_same_batches(store):
    pairs = Pairs(*_sources(store), (store.embeddings("vision", "train"), store.embeddings("words", "train")))
    ids = []
    for workers in (0, 2):
        loader = Loader(pairs, EpochOrder(len(pairs), 16, seed=1), workers)
        ids.append([(b.image_ids.tolist(), b.texts.sum().item()) for b in loader])
    assert ids[0] == ids[1]
    assert len(ids[0]) == 5

"""Batches: rows joined by number, the order of an epoch, worker processes."""

import multiprocessing
import pickle
from contextlib import closing

import numpy as np
import pytest
import torch

from cusa.data.errors import CusaError, SettingError
from cusa.data.records import Dataset
from cusa.data.store.reader import EmbeddingStore
from cusa.data.worker_pool import WorkerPool
from cusa.train.build_student import build_student
from cusa.train.config import Config
from cusa.train.loader import EpochOrder, Pairs, pairs_per_step
from cusa.train.sources import student_sources
from cusa.train.student_config import StudentConfig
from cusa.train.teacher_set import TeacherSet
from cusa.train.towers.processors import Processors
from tests.helpers import (
    Fault,
    add_teacher,
    fault_of,
    make_pairs,
    make_store,
    make_tiny_clip,
    records,
    settings,
    unit_rows,
)
from tests.train.pictures import precompute_pictures


def _sources(store, encoders=("vision", "words")):
    names = dict(zip(("image", "text"), encoders, strict=True))
    return student_sources(store, "train", Config(), names, Processors())


def _teachers(store, image, text):
    return TeacherSet((store.embeddings(image, "train"),), (store.embeddings(text, "train"),))


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(make_store(tmp_path))


def test_every_part_of_a_pair_is_of_the_same_image_and_caption(store):
    """Rows, teachers and ids are joined by row number, in any order."""
    split, inputs = _sources(store)
    teachers = _teachers(store, "vision", "words")
    batch = Pairs(split, inputs, teachers)[[7, 70, 7, 1]]
    assert batch.image_ids.tolist() == [3, 35, 3, 0]
    images = unit_rows(40, 16, 0).astype(np.float16)
    texts = (np.repeat(unit_rows(40, 16, 0), 2, axis=0) + 0.1 * unit_rows(80, 16, 9)).astype(
        np.float16
    )
    np.testing.assert_array_equal(batch.images.numpy(), images[[3, 35, 3, 0]].astype(np.float32))
    np.testing.assert_array_equal(batch.texts.numpy(), texts[[7, 70, 7, 1]].astype(np.float32))
    np.testing.assert_array_equal(batch.teacher_image.numpy(), images[[3, 35, 3, 0]])
    np.testing.assert_array_equal(batch.teacher_text.numpy(), texts[[7, 70, 7, 1]])


def test_skipped_rows_of_any_teacher_in_use_are_never_trained_on(tmp_path):
    index = make_store(tmp_path)
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 40)})
    add_teacher(
        index, dataset, "holes-i", settings("image", 4), {"train": unit_rows(40, 4, 0)}, skipped=[3]
    )
    add_teacher(
        index,
        dataset,
        "holes-t",
        settings("text", 4),
        {"train": unit_rows(80, 4, 0)},
        skipped=[10, 79],
    )
    store = EmbeddingStore(index)
    good = _teachers(store, "vision", "words")
    holes = _teachers(store, "holes-i", "holes-t")
    gone = {6, 7, 10, 79}  # both captions of image 3, and two captions
    as_teachers = Pairs(*_sources(store), holes)
    as_inputs = Pairs(*_sources(store, ("holes-i", "holes-t")), good)
    for pairs in (as_teachers, as_inputs):
        captions = pairs.rows(np.arange(len(pairs)))[1]
        assert captions.tolist() == sorted(set(range(80)) - gone)
        assert pairs.n_left_out == 4
    assert torch.isfinite(as_teachers[list(range(len(as_teachers)))].teacher_text).all()
    assert len(Pairs(*_sources(store), TeacherSet())) == 80


def test_order_is_a_permutation_by_seed_and_epoch():
    order = EpochOrder(10, 3, seed=5)
    first = np.concatenate(list(order))
    assert len(order) == 3
    assert len(set(first.tolist())) == 9
    np.testing.assert_array_equal(first, np.concatenate(list(EpochOrder(10, 3, seed=5))))
    order.epoch = 1
    assert np.concatenate(list(order)).tolist() != first.tolist()
    with pytest.raises(CusaError) as refused:
        EpochOrder(10, 11, seed=0)
    assert fault_of(refused.value) == Fault(SettingError, name="batch_size")


def test_an_epoch_goes_on_where_it_was_left_and_processes_share_each_batch():
    whole = list(EpochOrder(50, 6, seed=2))
    order = EpochOrder(50, 6, seed=2)
    order.first = 3
    np.testing.assert_array_equal(list(order), whole[3:])
    assert len(order) == 8
    order.first = 8
    assert list(order) == []
    parts = [list(EpochOrder(50, 3, seed=2, rank=r, size=2)) for r in range(2)]
    np.testing.assert_array_equal([np.concatenate(p) for p in zip(*parts, strict=True)], whole)
    with pytest.raises(CusaError) as refused:
        EpochOrder(50, 30, seed=2, size=2)
    assert fault_of(refused.value) == Fault(SettingError, name="batch_size")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pairs of image files, with teacher rows, for a CLIP student."""
    folder = tmp_path_factory.mktemp("pictures")
    manifest, clip = make_pairs(folder / "data", n=20), make_tiny_clip(folder / "clip")
    index = folder / "store.h5"
    precompute_pictures(manifest, clip, index)
    store = EmbeddingStore(index)
    towers = build_student(StudentConfig(str(clip))).towers
    sources = student_sources(store, "train", Config(), {}, towers.processors)
    return Pairs(*sources, _teachers(store, "vit", "minilm"))


@pytest.mark.parametrize(("workers", "start"), [(2, "fork"), (8, "fork"), (2, "spawn")])
def test_workers_however_they_begin_give_the_same_batches(pictures, workers, start):
    """Pixels, tokens, teacher rows and ids, bit for bit, of two epochs."""

    def read(workers, start="fork"):
        order = EpochOrder(len(pictures), 4, seed=1)
        with closing(WorkerPool(pictures, workers, start)) as pool:
            for order.epoch in range(2):
                yield from pool.read(order)

    n = 0
    for one, two in zip(read(0), read(workers, start), strict=True):
        assert [list(x.shape) for x in one.tensors()] == [list(x.shape) for x in two.tensors()]
        assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))
        n += 1
    assert n == 16
    assert len(list(one.tensors())) == 6


def test_what_a_worker_is_sent_does_not_grow_with_the_data_set(tmp_path):
    """No list of pairs, captions or paths: they are read from the store's memory map."""
    sizes = []
    for n in (40, 400):
        index = make_store(tmp_path / str(n), sizes={"train": n})
        store = EmbeddingStore(index)
        split, inputs = _sources(store)
        pairs = Pairs(split, inputs, _teachers(store, "vision", "words"))
        assert len(pairs) == 2 * n
        list(pairs[np.arange(8)].tensors())  # mapped by now, as in the process that forks
        shards = sum(
            e.n_shards
            for e in (store.embeddings("vision", "train"), store.embeddings("words", "train"))
        )
        sizes.append(len(pickle.dumps(pairs)) - 2 * 16 * shards)  # bounds and offsets of each shard
    assert sizes[1] < sizes[0] + 1000


def test_an_exception_ends_the_workers(pictures):
    """They ignore SIGTERM, and so must be told."""
    with (
        pytest.raises(KeyError),
        closing(WorkerPool(pictures, 2, "fork")) as pool,
    ):
        for _ in pool.read(EpochOrder(len(pictures), 4, seed=1)):
            workers = multiprocessing.active_children()
            assert {worker.pid for worker in workers} == set(pool.process_ids)
            raise KeyError
    assert not any(w.is_alive() for w in workers)


def test_a_step_takes_what_there_is_where_that_is_less_than_it_wants():
    """Pairs, pairs wanted of each process, processes; what each takes."""
    cases = [
        (80, 16, 1, 16),
        (80, 128, 1, 80),
        (80, 128, 3, 26),
        (80, 20, 4, 20),
        (2, 8, 2, 1),
        (0, 8, 1, 1),
    ]
    for n_pairs, wanted, processes, expected in cases:
        assert pairs_per_step(n_pairs, wanted, processes) == expected
    for n_pairs, processes in ((0, 1), (1, 4)):
        with pytest.raises(CusaError):
            EpochOrder(n_pairs, pairs_per_step(n_pairs, 8, processes), seed=0, size=processes)

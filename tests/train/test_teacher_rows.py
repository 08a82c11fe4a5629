"""Teachers' rows in a trainer of one's own."""

from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cusa.data.errors import DataError, SettingError, StoreError
from cusa.data.records import Dataset
from cusa.data.store.joined import JoinedDataset, join
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.teacher_rows import Teachers, collate_joined
from tests.helpers import add_teacher, make_store, records, settings, unit_rows


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(make_store(tmp_path))


def test_rows_of_a_batch(store):
    teachers = Teachers(store, "train")
    captions = np.array([5, 0, 79, 5])
    batch = teachers.rows(captions)
    assert batch.image_ids.tolist() == [2, 0, 39, 2]
    assert torch.equal(batch.image, torch.from_numpy(store["vision", "train"][[2, 0, 39, 2]]))
    assert torch.equal(batch.text, torch.from_numpy(store["words", "train"][captions]))
    assert torch.equal(Teachers(store.path, "train").rows(captions.tolist()).text, batch.text)
    assert teachers.rows(captions, "meta").image.device.type == "meta"
    assert len(teachers.trainable_captions) == 80


@pytest.mark.parametrize("rows", [[-1], [80], [0, 1000]])
def test_rows_out_of_range(store, rows):
    with pytest.raises(IndexError):
        Teachers(store, "train").rows(rows)


@pytest.mark.parametrize("rows", [[0.5], [True], ["1"], [None], None, 1, [[0]], [1 << 70]])
def test_ids_masks_and_shares_are_no_rows(store, rows):
    with pytest.raises(IndexError):
        Teachers(store, "train").rows(rows)
    with pytest.raises(IndexError):
        JoinedDataset(range(1), rows)


def test_settings_of_the_loss_may_be_a_mapping(store):
    """USA of images alone reads no rows of captions."""
    settings = {"terms": ("usa",), "soft_label_modalities": ("image",)}
    for config in (settings, MappingProxyType(settings), LossConfig(**settings)):
        batch = Teachers(store, "train", config=config).rows([0, 1])
        assert batch.image is not None
        assert batch.text is None


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"alfa": 1}, "alfa"),
        ({"alpha": -1}, "alpha"),
        ("usa", "config"),
        pytest.param(10**5000, "config", id="more digits than Python writes"),
    ],
)
def test_settings_that_the_loss_does_not_have_are_refused(store, config, name):
    for use in (partial(Teachers, store, "train", config=config), partial(CUSALoss, config)):
        with pytest.raises(SettingError) as refused:
            use()
        assert refused.value.name == name


def test_what_is_no_store_is_refused():
    with pytest.raises(StoreError) as refused:
        Teachers(None, "train")
    assert refused.value.name == "path"


def test_a_stream_cannot_be_joined(store):
    with pytest.raises(DataError) as caught:
        join(iter([1]), store.split("train"), caption_ids=["train0#0"])
    assert caught.value.name == "items"


class _Rows:
    """A collate function that gathers rows in the loader's workers."""

    def __init__(self, teachers):
        self.teachers = teachers

    def __call__(self, batch):
        _, caption_rows = collate_joined(batch)
        ids = self.teachers.split.caption_ids[caption_rows]
        found_rows = self.teachers.split.caption_rows(ids)
        return self.teachers.rows(found_rows), found_rows


def test_workers_that_are_spawned(store):
    teachers = Teachers(store, "train")
    split = store.split("train")
    split.caption_rows(["train0#0"])
    joined = join(range(80), split, caption_ids=split.caption_ids[::-1])
    loader = DataLoader(
        joined, 40, collate_fn=_Rows(teachers), num_workers=1, multiprocessing_context="spawn"
    )
    rows = []
    for batch, caption_rows in loader:
        rows += caption_rows.tolist()
        assert torch.equal(batch.text, teachers.rows(caption_rows).text)
    assert rows == list(range(79, -1, -1))


def _one_teacher_store(folder, skipped=()):
    dataset = Dataset("mine", folder, {"train": records("train", 6)})
    rows = {"train": unit_rows(12, 8, 0)}
    add_teacher(folder / "s.h5", dataset, "words", settings("text", 8), rows, skipped=skipped)
    return EmbeddingStore(folder / "s.h5")


def test_one_teacher_alone(tmp_path):
    batch = Teachers(_one_teacher_store(tmp_path), "train").rows([3, 4])
    assert batch.image is None
    assert batch.text.shape == (2, 8)
    with pytest.raises(StoreError):
        Teachers(tmp_path / "s.h5", "train", image_teacher="vision")


def test_skipped_rows_are_refused_by_name(tmp_path):
    teachers = Teachers(_one_teacher_store(tmp_path, skipped=[3]), "train")
    assert teachers.trainable_captions.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    with pytest.raises(DataError) as caught:
        teachers.rows([2, 3])
    assert caught.value.name == "train1#1"


def test_a_store_without_teachers(tmp_path):
    from cusa.data.store.index import Index, write_index

    dataset = Dataset("mine", tmp_path, {"train": records("train", 6)})
    write_index(tmp_path / "s.h5", Index.from_dataset(dataset, {}))
    with pytest.raises(StoreError) as caught:
        Teachers(tmp_path / "s.h5", "train")
    assert caught.value.path == tmp_path / "s.h5"


def test_a_data_set_of_ones_own_with_its_rows(store):
    split = store.split("train")
    order = np.random.default_rng(0).permutation(split.n_captions)
    ids = [split.caption_ids[row] for row in order.tolist()]
    items = TensorDataset(torch.arange(80.0), torch.from_numpy(order))
    joined = join(items, split, caption_ids=ids)
    teachers = Teachers(store, "train")
    n_batches = 0
    for (_, own_rows), caption_rows in DataLoader(joined, 16, collate_fn=collate_joined):
        assert own_rows.tolist() == caption_rows.tolist()
        assert teachers.rows(caption_rows).text.shape == (16, 16)
        n_batches += 1
    assert n_batches == 5

    entries = []
    for row in order.tolist():
        path = split.image_paths[int(split.caption_image[row])]
        entries.append({"image": path, "caption": split.captions[row]})
    assert (join(items, split, annotations=entries).caption_rows == order).all()
    assert (store.join(items, "train", annotations=entries).caption_rows == order).all()


def test_a_join_needs_a_row_for_each_item(store):
    split = store.split("train")
    with pytest.raises(DataError) as caught:
        JoinedDataset(range(3), [0, 1])
    assert caught.value.name == "caption_rows"
    with pytest.raises(DataError) as caught:
        join(range(3), split)
    assert caught.value.name == "caption_ids"
    with pytest.raises(DataError) as caught:
        join(range(3), "train", caption_ids=["a", "b", "c"])
    assert caught.value.name == "split"

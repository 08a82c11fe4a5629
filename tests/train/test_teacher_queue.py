"""The rows of a momentum queue, beside a queue of features as hosts have it."""

from collections import deque

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cusa.data.errors import DataError, EmbeddingsError, SettingError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.batch import Candidates
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.teacher_queue import TeacherQueue
from cusa.train.teacher_rows import Teachers
from tests.helpers import make_store


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return Teachers(EmbeddingStore(make_store(tmp_path_factory.mktemp("store"))), "train")


def test_the_oldest_pairs_are_overwritten():
    queue, newest = TeacherQueue(7), deque(maxlen=7)
    rng = np.random.default_rng(0)
    for size in (0, 3, 3, 1, 7, 2, 5, 7, 1):
        rows = rng.integers(0, 80, size)
        queue.enqueue(rows)
        newest.extend(rows.tolist())
        # In the ring, the oldest pair is in the next slot.
        ring = torch.roll(queue.caption_rows, -int(queue.next_slot)).tolist()
        assert ring == [-1] * (7 - len(newest)) + list(newest)


def test_slots_are_those_of_a_queue_of_features():
    """A host's queue that writes at its pointer, in batches that divide its size."""
    queue, features, pointer = TeacherQueue(6), torch.full((6,), -1), 0
    for start in range(0, 16, 2):
        rows = torch.tensor([start, start + 1])
        features[pointer : pointer + 2] = rows
        pointer = (pointer + 2) % 6
        queue.enqueue(rows)
        assert torch.equal(queue.caption_rows, features)
        assert queue.next_slot.item() == pointer


def test_teacher_rows_and_ids_of_batch_and_queue(teachers):
    queue = TeacherQueue(4)
    queue.enqueue([5, 79, 4])
    batch = [2, 4]
    rows, mask = queue.candidates(teachers, batch)
    assert mask.tolist() == [True, True, True, True, True, False]
    expected = teachers.rows([*batch, 5, 79, 4])
    assert torch.equal(rows.image[mask], expected.image)
    assert torch.equal(rows.text[mask], expected.text)
    assert rows.image_ids[mask].tolist() == [1, 2, 2, 39, 2]
    assert len(rows.image) == len(rows.text) == len(rows.image_ids) == 6
    meta_rows, meta_mask = queue.candidates(teachers, torch.tensor(batch), "meta")
    assert {meta_rows.image.device.type, meta_mask.device.type} == {"meta"}


def test_a_resumed_queue_continues(teachers):
    model = torch.nn.ModuleDict({"queue": TeacherQueue(5)})
    model["queue"].enqueue([1, 2, 3, 4])
    again = torch.nn.ModuleDict({"queue": TeacherQueue(5)})
    again.load_state_dict(model.state_dict())
    for modules in (model, again):
        modules["queue"].enqueue([7, 8])
    assert again["queue"].caption_rows.tolist() == [8, 2, 3, 4, 7]
    assert torch.equal(again["queue"].next_slot, model["queue"].next_slot)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8", None])
def test_sizes_that_are_none(size):
    with pytest.raises(SettingError) as error:
        TeacherQueue(size)
    assert error.value.name == "size"


def test_rows_that_are_none(teachers):
    queue = TeacherQueue(4)
    for rows in ([-1], [0.5], [True], ["1"], [[0]], None, torch.ones(2), torch.tensor(1)):
        with pytest.raises(IndexError):
            queue.enqueue(rows)
        with pytest.raises(IndexError):
            queue.candidates(teachers, rows)
    for call in (lambda: queue.enqueue(range(5)), lambda: queue.candidates(teachers, [])):
        with pytest.raises(DataError) as error:
            call()
        assert error.value.name == "caption_rows"
    assert queue.caption_rows.tolist() == [-1] * 4
    with pytest.raises(IndexError):
        queue.candidates(teachers, [80])


def test_a_queue_that_fills_up_beside_its_features(teachers):
    """Each step's loss is that of the filled slots alone, whatever the others hold."""
    rng = torch.Generator().manual_seed(0)
    encoder = torch.randn(4, 80, 6, generator=rng, dtype=torch.float64)
    queue, n_slots = TeacherQueue(6), 6
    features_queue = torch.full((4, n_slots, 6), torch.nan, dtype=torch.float64)
    loss, slots = CUSALoss().double(), []
    for step in range(5):
        batch = torch.arange(2 * step, 2 * step + 2) * 3 % 80
        features = encoder[:, batch]
        rows, mask = queue.candidates(teachers, batch)
        others = torch.cat([features, features_queue], dim=1)
        terms = loss(
            *features, rows.image, rows.text, rows.image_ids, Candidates(*others, mask=mask)
        )
        filled = [*batch.tolist(), *slots]
        alone = teachers.rows(filled)
        expected = loss(
            *features, alone.image, alone.text, alone.image_ids, Candidates(*encoder[:, filled])
        )
        torch.testing.assert_close(terms, expected, rtol=1e-9, atol=1e-12)
        queue.enqueue(batch)
        written = slice(2 * step % n_slots, 2 * step % n_slots + 2)
        features_queue[:, written] = F.normalize(features, dim=-1)
        slots = queue.caption_rows[queue.caption_rows >= 0].tolist()
    with pytest.raises(EmbeddingsError) as error:
        loss(*features, rows.image, rows.text, rows.image_ids, Candidates(*others[:, :-1]))
    assert error.value.name == "teacher_image"

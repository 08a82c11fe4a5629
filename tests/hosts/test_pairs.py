"""The store and the settings of the loss, as the modules for other trainers take them."""

import pytest

from cusa.data.errors import DataError
from cusa.data.store.reader import EmbeddingStore
from cusa.hosts import sentence_transformers, transformers
from cusa.hosts.open_clip import SoftLabels
from cusa.hosts.pairs import SplitTeachers, usable_captions
from cusa.hosts.transformers import SoftLabelCollator
from cusa.train.loss.config import LossConfig
from tests.helpers import make_store

USA_OF_IMAGES = {"terms": ("usa",), "soft_label_modalities": ("image",)}


@pytest.fixture
def path(tmp_path):
    return make_store(tmp_path)


@pytest.mark.parametrize("config", [USA_OF_IMAGES, LossConfig(**USA_OF_IMAGES)])
def test_a_store_may_be_a_path_and_settings_a_mapping(path, config):
    for store in (path, str(path), EmbeddingStore(path)):
        teachers = SplitTeachers(store, ("train",), config=config)
        assert teachers.of_batch(["train"]).rows([0]).text is None
        collator = SoftLabelCollator(store, ("train",), dict, config=config)
        assert collator.teachers.of_batch(["train"]).rows([0]).text is None
        assert collator.image_root == EmbeddingStore(path).image_root
        assert len(usable_captions(store, "val")) == 20
        assert len(transformers.pairs_dataset(store, "val")) == 20
        assert len(sentence_transformers.pairs_dataset(store, ("train", "val"), "val")) == 20
        assert len(sentence_transformers.retrieval_evaluator(store, "val").queries) == 20


@pytest.mark.parametrize("config", [USA_OF_IMAGES, LossConfig(**USA_OF_IMAGES)])
def test_soft_labels_of_open_clip_take_settings_as_a_mapping(config):
    assert SoftLabels(4, config).config == LossConfig(**USA_OF_IMAGES)


def test_a_single_text_is_no_tuple_of_splits(path):
    with pytest.raises(DataError) as refused:
        SplitTeachers(path, "train")
    assert refused.value.name == "splits"


def test_pairs_of_a_split_that_the_loss_lacks_are_refused(path):
    """Their labels name the split by its number among the loss's."""
    with pytest.raises(DataError) as refused:
        sentence_transformers.pairs_dataset(path, ("train",), "val")
    assert refused.value.name == "val"

"""Parts of a store have their texts in one file beside them."""

import numpy as np
import pytest

from cusa.data.errors import StoreError
from cusa.data.records import Dataset
from cusa.data.store.index import read_index, write_index, write_part
from cusa.data.store.merge import merge
from cusa.data.store.part_texts import texts_path_of_store
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.verify import verify
from tests.data.store.test_merge import SIZES
from tests.helpers import Fault, fault_of, make_store, records


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "s", SIZES, dim=4, truth=True)


@pytest.fixture
def part(index):
    """A part with all teachers of a store."""
    part = index.with_name("store.part-0-9-aaaa.h5")
    write_part(part, read_index(index), index)
    return part


def _texts(part):
    (texts,) = part.parent.glob("*.part-texts-*.h5")
    return texts


def test_a_part_reads_as_the_whole(index, part):
    whole, store = EmbeddingStore(index), EmbeddingStore(part)
    assert part.stat().st_size < index.stat().st_size
    for name, split in whole.splits.items():
        other = store.split(name)
        assert other.fingerprint == split.fingerprint
        assert list(other) == list(split)
        assert np.array_equal(other.truth.indices, split.truth.indices)
        assert other.caption_rows(split.caption_ids[:3]).tolist() == [0, 1, 2]
        for teacher in whole.teachers:
            rows = np.asarray(whole[teacher, name])
            assert np.array_equal(np.asarray(store[teacher, name]), rows, equal_nan=True)
    assert verify(part) == verify(index)
    expected = index.read_bytes()
    index.unlink()
    merge(index, [part])
    assert index.read_bytes() == expected
    merge(index, [part, _texts(part)])  # as *.part-*.h5 has both
    assert index.read_bytes() == expected


def test_texts_alone_are_no_store(part, tmp_path):
    texts = _texts(part)
    with pytest.raises(StoreError) as error:
        merge(tmp_path / "joined.h5", [texts])
    assert fault_of(error.value) == Fault(StoreError, path=texts)
    assert not (tmp_path / "joined.h5").exists()


def test_the_texts_are_written_once(index, part):
    texts = _texts(part)
    written = texts.stat()
    second = part.with_name("store.part-9-12-bbbb.h5")
    write_part(second, read_index(index), index)
    assert texts.stat().st_ino == written.st_ino
    assert second.read_bytes() == part.read_bytes()
    content = texts.read_bytes()
    texts.write_bytes(content[:-1])
    write_part(second, read_index(index), index)
    assert texts.read_bytes() == content


def test_other_relevance_has_texts_of_its_own(index):
    tables = read_index(index).splits
    truth = tables["train"].truth
    path = texts_path_of_store(index, tables)
    truth.image_labels.flags.writeable = True
    truth.image_labels[0] += 1
    assert texts_path_of_store(index, tables) != path


@pytest.mark.parametrize("open_part", [read_index, EmbeddingStore])
def test_texts_that_are_not_those_of_the_part_are_refused(tmp_path, part, open_part):
    texts = _texts(part)
    content = texts.read_bytes()
    texts.write_bytes(content[:-1] + b"x")
    with pytest.raises(StoreError) as error:
        open_part(part)
    assert error.value.path == texts

    texts.unlink()
    with pytest.raises(StoreError) as error:
        open_part(part)
    assert fault_of(error.value) == Fault(StoreError, path=texts)

    for splits in ({"train": 3, "val": 5}, {"train": 16}):
        split_records = {name: records(name, n) for name, n in splits.items()}
        dataset = Dataset("made-up", tmp_path, split_records)
        write_index(texts, read_index(make_store_of(dataset)))
        with pytest.raises(StoreError) as error:
            open_part(part)
        assert error.value.name == "fingerprint"

    # A part whose texts are a part's again.
    texts.write_bytes(part.read_bytes())
    with pytest.raises(StoreError) as error:
        open_part(part)
    assert error.value.path == texts


def make_store_of(dataset):
    """The index of a data set without teachers."""
    from cusa.data.store.index import Index

    path = dataset.image_root / "other.h5"
    write_index(path, Index.from_dataset(dataset, {}))
    return path


def test_texts_are_looked_for_beside_the_part_alone(index):
    contents = read_index(index)
    for name in ("../store.h5", "/etc/hosts", ".."):
        write_index(index, contents, name)
        with pytest.raises(StoreError):
            read_index(index)

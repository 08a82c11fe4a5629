"""Batches of a tar set: equal to those of a store of the same pairs, whoever reads them."""

import os
import pickle
from contextlib import closing

import numpy as np
import pytest
import torch

from cusa.data.errors import ImageError, StoreError
from cusa.data.images import load_image
from cusa.data.tars.manifest import write_manifest
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.open_tar import require_unchanged
from cusa.data.tars.origin import SetOrigin
from cusa.data.tars.pairs import read_pairs_of_tar
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from cusa.data.worker_pool import WorkerPool
from cusa.train.tars.inputs import tar_inputs
from cusa.train.tars.pairs import ImageNames, TarSetPairs
from cusa.train.tars.source import InPlace
from cusa.train.tars.supply import TarSupply
from cusa.train.teacher_set import TeacherSet
from cusa.train.towers.processors import Processors
from tests.data.tars.tar_files import jpeg, write_rows, write_set, write_tars
from tests.helpers import Fault, fault_of

N_TARS = 6
N_PAIRS = 4
SKIPPED = (1,)  # image row of each tar that has no embedding
TEACHERS = ("eyes", "words")
USED_TEACHERS = TeacherSet(("eyes",), ("words",))


@pytest.fixture
def tar_set(tmp_path):
    tars = write_tars(tmp_path / "tars", N_TARS, N_PAIRS)
    return write_set(tmp_path / "set", tars, SKIPPED, caption="json:all")


def _stored_inputs():
    encoders = dict(zip(("image", "text"), TEACHERS, strict=True))
    return tar_inputs(encoders, Processors(), "none", TEACHERS)


def _pairs(tar_set, n_open=2):
    return TarSetPairs(tar_set, _stored_inputs(), USED_TEACHERS, n_open)


def test_every_part_of_a_pair_is_of_the_same_image_and_caption(tar_set):
    """The first number of a made-up row is its row in the tar, the second one the tar's."""
    pairs = _pairs(tar_set)
    n_trainable = 2 * (N_PAIRS - 1)  # captions of each tar
    assert len(pairs) == N_TARS * n_trainable
    assert pairs.n_left_out == N_TARS * 2
    numbers = np.random.default_rng(0).permutation(len(pairs))
    batch = pairs[numbers]
    caption_rows = np.array([0, 1, 4, 5, 6, 7])[numbers % n_trainable]
    image_rows = caption_rows // 2
    tars = numbers // n_trainable
    image_ids = tars * N_PAIRS + image_rows
    assert batch.image_ids.tolist() == image_ids.tolist()
    names = ImageNames(tar_set)
    assert names[int(image_ids[0])] == f"{tars[0]:05d}/{image_ids[0]:06d}"
    for tar in set(tars.tolist()):
        of_tar = tars == tar
        name = tar_set.manifest.names[tar]
        image = tar_set.rows("eyes", name)[image_rows[of_tar]]
        text = tar_set.rows("words", name)[caption_rows[of_tar]]
        np.testing.assert_array_equal(batch.teacher_image[of_tar], image)
        np.testing.assert_array_equal(batch.teacher_text[of_tar], text)
        np.testing.assert_array_equal(batch.images[of_tar], image.astype(np.float32))
        np.testing.assert_array_equal(batch.texts[of_tar], text.astype(np.float32))


def test_several_teachers_and_cross_modal_ones(tar_set):
    teachers = TeacherSet(("eyes", "more-eyes"), ("words",), (("more-eyes", "words"),))
    for number in range(N_TARS):
        tar = tar_set.image_root / f"{number:05d}.tar"
        write_rows(tar_set.path, read_pairs_of_tar(tar, "json:all", False), "more-eyes", "image")
    write_manifest(tar_set.path, build_manifest(tar_set.path, SetOrigin(str(tar_set.image_root))))
    pairs = TarSetPairs(TarSet(tar_set.path), _stored_inputs(), teachers, 2)
    numbers = np.arange(0, len(pairs), 5)
    batch = pairs[numbers]
    eyes, more_eyes = batch.teacher_image
    [(images, texts)] = batch.cross_teachers
    alone = _pairs(tar_set)[numbers]
    assert torch.equal(eyes, alone.teacher_image)
    assert torch.equal(batch.teacher_text, alone.teacher_text)
    assert torch.equal(more_eyes, eyes)
    assert torch.equal(images, more_eyes)
    assert torch.equal(texts, batch.teacher_text)
    assert "more-eyes" in pairs.teachers_read


def _supply(tar_set, pairs, n_ahead=2):
    place = InPlace(tar_set, pairs.teachers_read, pairs.reads_images)
    return TarSupply(pairs, tar_set.manifest.names, place, n_ahead)


def _order(pairs, batch_size=5):
    """Batches that lie across two tars or three."""
    n_steps = len(pairs) // batch_size
    return np.arange(n_steps * batch_size).reshape(n_steps, batch_size)


def test_batches_are_equal_for_any_number_of_workers(tar_set):
    pairs = _pairs(tar_set)
    expected = [pairs[keys] for keys in _order(pairs)]
    for workers in (0, 1, 2, 4):
        supply = _supply(tar_set, pairs)
        with closing(WorkerPool(pairs, workers)) as pool:
            for _ in range(2):
                batches = list(supply.read(pool, _order(pairs)))
                assert len(batches) == len(expected)
                for batch, other in zip(batches, expected, strict=True):
                    for one, two in zip(batch.tensors(), other.tensors(), strict=True):
                        assert torch.equal(one, two)


class Ledger:
    """A place that keeps what it was asked for, and that each tar is there when it is needed."""

    n_threads = 1

    def __init__(self):
        self.there = set()
        self.brought = []
        self.most = 0

    def bring(self, tar):
        assert tar not in self.there
        self.there.add(tar)
        self.brought.append(tar)
        self.most = max(self.most, len(self.there))

    def drop(self, tar):
        self.there.remove(tar)


def test_tars_come_a_window_ahead_and_go_when_they_are_behind(tar_set):
    pairs = _pairs(tar_set)
    place = Ledger()
    supply = TarSupply(pairs, tar_set.manifest.names, place, 1)
    with closing(WorkerPool(pairs, 0)) as pool:
        for keys, _ in zip(_order(pairs), supply.read(pool, _order(pairs)), strict=True):
            needed = {tar_set.manifest.names[tar] for tar in pairs.tars_of(keys)}
            assert needed <= place.there
    assert place.brought == list(tar_set.manifest.names)
    assert place.most <= 4
    assert not place.there


def test_a_sample_leaves_no_tar_in_use_also_if_it_cannot_be_read(tmp_path, tar_set):
    pairs = _pairs(tar_set)
    place = Ledger()
    supply = TarSupply(pairs, tar_set.manifest.names, place, 1)
    supply.sample([0, len(pairs) - 1])
    (tmp_path / "set" / "eyes" / "00001.h5").unlink()
    with pytest.raises(StoreError):
        supply.sample(list(range(len(pairs))))
    assert "00001" in place.brought
    assert not place.there


def test_a_batch_read_by_another_process_needs_no_open_file(tar_set):
    pairs = _pairs(tar_set)
    expected = pairs[[0, 7]]
    batch = pickle.loads(pickle.dumps(pairs))[[0, 7]]
    assert torch.equal(batch.teacher_image, expected.teacher_image)


@pytest.mark.parametrize("file", ["pairs/00003.h5", "eyes/00003.h5", "words/00003.h5"])
@pytest.mark.parametrize("place", ["version", "end"])
def test_a_flipped_byte_is_named_before_a_batch_uses_it(tmp_path, tar_set, file, place):
    path = tmp_path / "set" / file
    content = bytearray(path.read_bytes())
    position = len(content) - 1
    if place == "version":  # no checksum covers it, but the file's contents repeat it
        position = content.index(b"2.1 sha256=") + len("2.")
    content[position] ^= 1
    path.write_bytes(content)
    pairs = _pairs(tar_set)
    read = 0
    with closing(WorkerPool(pairs, 0)) as pool, pytest.raises(StoreError) as caught:
        for batch in _supply(tar_set, pairs).read(pool, _order(pairs)):
            assert batch.image_ids.max() < 3 * N_PAIRS
            read += 1
    assert read > 0
    assert fault_of(caught.value).path == path


def test_a_flipped_byte_of_the_manifest_is_named(tmp_path, tar_set):
    path = tmp_path / "set" / "set.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        TarSet(tmp_path / "set")
    assert caught.value.path == path


@pytest.mark.parametrize("change", ["longer", "missing"])
def test_a_changed_tar_is_named_where_pictures_are_read(tmp_path, tar_set, change):
    path = tmp_path / "tars" / "00003.tar"
    content = path.read_bytes()
    path.unlink()
    if change == "longer":
        path.write_bytes(content + bytes(512))
    InPlace(tar_set, TEACHERS, reads_images=False).bring("00003")
    with pytest.raises(TarError) as caught:
        InPlace(tar_set, TEACHERS, reads_images=True).bring("00003")
    assert fault_of(caught.value) == Fault(TarError, path, name="00003")


def test_all_bytes_of_a_tar_are_verified_once_and_again_when_it_was_written_to(
    tmp_path, tar_set, monkeypatch
):
    verified = []

    def noting(path, *arguments):
        verified.append(path)
        require_unchanged(path, *arguments)

    monkeypatch.setattr("cusa.data.tars.tar_set.require_unchanged", noting)
    path = tmp_path / "tars" / "00003.tar"
    place = InPlace(tar_set, TEACHERS, reads_images=True)
    place.bring("00003")
    place.bring("00003")
    assert verified == [path]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, (1, 1))
    for _ in range(2):
        with pytest.raises(TarError):
            place.bring("00003")
    assert verified == [path] * 3


class Greys:
    """Processors that keep the mean of a picture, and the captions as they are."""

    def pixels(self, images):
        means = [np.asarray(image).mean() for image in images]
        return torch.tensor(means).reshape(-1, 1)

    def tokens(self, captions):
        return captions


def _file_inputs():
    return tar_inputs({}, Processors(Greys(), Greys()), "none", TEACHERS)


def test_pictures_and_captions_are_those_of_their_pairs(tmp_path, tar_set):
    pairs = TarSetPairs(tar_set, _file_inputs(), USED_TEACHERS, 2)
    numbers = [14, 0, 35, 13]
    batch = pairs[numbers]
    greys = [load_image(tmp_path, jpeg(image)) for image in batch.image_ids.tolist()]
    assert torch.equal(batch.images, Greys().pixels(greys))
    expected = []
    for image, number in zip(batch.image_ids.tolist(), numbers, strict=True):
        expected.append("two" if number % 2 else f"picture number {image}")
    assert batch.texts == expected


def test_a_picture_that_cannot_be_decoded_is_named_by_tar_and_file(tmp_path, tar_set):
    path = tmp_path / "tars" / "00002.tar"
    stored = tar_set.pairs("00002")
    content = bytearray(path.read_bytes())
    start, size = int(stored.image_offsets[2]), int(stored.image_sizes[2])
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    pairs = TarSetPairs(tar_set, _file_inputs(), USED_TEACHERS, 2)
    with pytest.raises(ImageError) as caught:
        pairs[[0, 14]]
    assert caught.value.path == path / stored.images[2]

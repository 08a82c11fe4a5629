"""The files of a tar set: written and read, damaged and exchanged, and joined to webdataset."""

import pytest
import torch
import webdataset
from torch.utils.data import default_collate

from cusa.data.errors import StoreError
from cusa.data.store.checksum import ChecksumError
from cusa.data.tars.manifest import MANIFEST, read_manifest, write_manifest
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.origin import SetOrigin
from cusa.data.tars.pair_files import pairs_path, read_pairs, write_pairs
from cusa.data.tars.pairs import read_pairs_of_tar
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.verify import set_aside_in_set, verify_set
from cusa.data.tars.webdataset_stage import with_teachers
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from tests.data.tars.tar_files import (
    DIM,
    jpeg,
    pair,
    write_rows,
    write_set,
    write_tar,
    write_tars,
)
from tests.helpers import settings

N_PAIRS = 4
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars", 3, N_PAIRS)


def test_pairs_are_read_as_written(tmp_path, tars):
    pairs = read_pairs_of_tar(tars[1], "txt", False)
    write_pairs(tmp_path, pairs)
    stored = read_pairs(pairs_path(tmp_path, "00001"))
    assert stored.keys == ("000004", "000005", "000006", "000007")
    assert stored.images[0] == "000004.jpg"
    assert stored.captions[0] == "picture number 4"
    assert stored.fingerprint == pairs.records.fingerprint
    content = tars[1].read_bytes()
    for row, number in enumerate(range(4, 8)):
        start, size = stored.image_offsets[row], stored.image_sizes[row]
        assert content[start : start + size] == jpeg(number)


def test_the_manifest_is_read_as_written_and_made_again_from_the_files(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    content = (tmp_path / MANIFEST).read_bytes()
    manifest = read_manifest(tmp_path)
    assert manifest.names == ("00000", "00001", "00002")
    assert manifest.counts["n_images"].tolist() == [N_PAIRS] * 3
    assert tar_set.teachers["eyes"] == settings("image", DIM)
    assert tar_set.image_root == tars[0].parent
    # Kept by cusa-store index, as no other file says where the tars are.
    write_manifest(tmp_path, build_manifest(tmp_path))
    assert (tmp_path / MANIFEST).read_bytes() == content
    origin = SetOrigin.recorded(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(StoreError):
        TarSet(tmp_path)
    write_manifest(tmp_path, build_manifest(tmp_path, origin))
    assert (tmp_path / MANIFEST).read_bytes() == content


def test_a_tar_without_pairs_has_files_and_no_rows(tmp_path, tars):
    empty = write_tar(tmp_path / "tars" / "00003.tar", [("k.txt", b"no picture")])
    tar_set = write_set(tmp_path, [*tars, empty])
    assert tar_set.rows("eyes", "00003").shape == (0, DIM)
    assert tar_set.pairs("00003").left_out[0][0] == "k"


def test_every_flipped_byte_is_named(tmp_path, tars):
    """In the seal's own line, a byte may also make it another file's seal."""
    write_set(tmp_path, tars)
    files = [tmp_path / MANIFEST, pairs_path(tmp_path, "00001"), tmp_path / "eyes" / "00001.h5"]
    for path in files:
        whole = path.read_bytes()
        for position in (30, 600, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(StoreError) as caught:
                tar_set = TarSet(tmp_path)
                tar_set.pairs("00001")
                tar_set.rows("eyes", "00001")
            assert caught.value.path == path, position
            if path.name != MANIFEST:
                with pytest.raises(StoreError):
                    build_manifest(tmp_path)
        path.write_bytes(whole)


def test_files_of_other_tars_or_teachers_are_refused(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    rows = (tmp_path / "eyes" / "00000.h5").read_bytes()
    (tmp_path / "eyes" / "00001.h5").write_bytes(rows)
    with pytest.raises(StoreError):
        tar_set.rows("eyes", "00001")
    with pytest.raises(StoreError) as caught:
        build_manifest(tmp_path)
    assert caught.value.path == tmp_path / "eyes" / "00001.h5"

    pairs = pairs_path(tmp_path, "00000").read_bytes()
    pairs_path(tmp_path, "00001").write_bytes(pairs)
    with pytest.raises(StoreError) as caught:
        tar_set.pairs("00001")
    assert caught.value.path == pairs_path(tmp_path, "00001")


def test_rows_in_the_folder_of_another_teacher_are_refused(tmp_path, tars):
    write_set(tmp_path, tars)
    (tmp_path / "eyes").rename(tmp_path / "ears")
    with pytest.raises(StoreError) as caught:
        build_manifest(tmp_path)
    assert caught.value.name == "ears"


def test_without_a_manifest_every_file_is_verified(tmp_path, tars):
    write_set(tmp_path, tars)
    damaged = tmp_path / "eyes" / "00001.h5"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / MANIFEST).unlink()
    n_files, damages = verify_set(tmp_path)
    assert n_files == 1 + 3 * 3
    assert [damage.path for damage in damages] == [tmp_path / MANIFEST, damaged]
    assert damaged.with_name("00001.h5.damaged") in set_aside_in_set(damages)
    with pytest.raises(StoreError):
        verify_set(tmp_path / "tars")


def test_a_set_of_several_settings_or_with_missing_rows_is_refused(tmp_path, tars):
    write_set(tmp_path, tars)
    pairs = read_pairs_of_tar(tars[2], "json:caption", False)
    write_pairs(tmp_path, pairs)
    with pytest.raises(StoreError) as caught:
        build_manifest(tmp_path)
    assert caught.value.name == "00002"
    (tmp_path / "eyes" / "00001.h5").unlink()
    with pytest.raises(StoreError):
        build_manifest(tmp_path)
    with pytest.raises(StoreError):
        build_manifest(tmp_path / "tars")


# --- webdataset


def test_a_stage_of_webdataset_adds_each_sample_its_rows(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    paths = list(map(str, tars))
    dataset = webdataset.WebDataset(paths, shardshuffle=False).compose(with_teachers(tar_set))
    samples = list(dataset)
    assert len(samples) == 3 * N_PAIRS
    for number, sample in enumerate(samples):
        tar, row = divmod(number, N_PAIRS)
        assert sample["__key__"] == f"{number:06d}"
        assert sample["image_teacher"].tolist() == [row, 1 + tar, 1 + tar]
        assert sample["text_teacher"].tolist() == [row, 1 + tar, 1 + tar]
        assert sample["jpg"] == jpeg(number)


def test_the_stage_takes_samples_that_are_decoded(tmp_path, tars):
    dataset = webdataset.WebDataset(str(tars[0]), shardshuffle=False).decode("rgb8")
    samples = list(dataset.compose(with_teachers(write_set(tmp_path, tars))))
    assert len(samples) == N_PAIRS
    assert samples[2]["image_teacher"][0] == 2
    assert samples[2]["jpg"].shape[2] == 3


def test_a_sample_with_several_captions_gets_a_row_each(tmp_path, tars):
    tar_set = write_set(tmp_path, tars, caption="json:all")
    dataset = webdataset.WebDataset(str(tars[0]), shardshuffle=False)
    samples = list(dataset.compose(with_teachers(tar_set)))
    assert samples[2]["text_teacher"][:, 0].tolist() == [4, 5]


def test_samples_without_rows_are_dropped(tmp_path, tars):
    odd = write_tar(tmp_path / "tars" / "00009.tar", [*pair(1), ("k.txt", b"?"), *pair(2)])
    tar_set = write_set(tmp_path, [*tars, odd], skipped=(1,))
    samples = webdataset.WebDataset(str(odd), shardshuffle=False).compose(with_teachers(tar_set))
    assert [sample["__key__"] for sample in samples] == ["000001"]


def test_a_tar_that_changed_or_is_not_in_the_set_is_named(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    write_tar(tars[1], pair(4) + pair(99))
    stage = with_teachers(tar_set)
    with pytest.raises(TarError) as caught:
        list(webdataset.WebDataset(str(tars[1]), shardshuffle=False).compose(stage))
    assert caught.value.name == "000099"
    other = write_tar(tmp_path / "other.tar", pair(1))
    with pytest.raises(StoreError) as caught:
        list(webdataset.WebDataset(str(other), shardshuffle=False).compose(stage))
    assert caught.value.name == "other"


@pytest.mark.parametrize("choice", [{"image_teacher": "words"}, {"text_teacher": "eyes"}])
def test_a_teacher_of_the_other_modality_is_refused(tmp_path, tars, choice):
    """Its rows are those of captions, not of images."""
    tar_set = write_set(tmp_path, tars)
    with pytest.raises(StoreError) as caught:
        with_teachers(tar_set, **choice)
    assert caught.value.name in choice.values()


def test_a_path_with_the_characters_of_a_url_names_its_tar(tmp_path):
    tars = write_tars(tmp_path / "set#1?", 1, N_PAIRS)
    stage = with_teachers(write_set(tmp_path, tars))
    samples = webdataset.WebDataset(str(tars[0]), shardshuffle=False).compose(stage)
    assert len(list(samples)) == N_PAIRS
    [sample] = stage([{"__url__": "https://host/a/00000.tar?x=1", "__key__": "000001"}])
    assert sample["image_teacher"][0] == 1


def test_a_teacher_is_chosen_among_several(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    for tar in tars:
        write_rows(tmp_path, read_pairs_of_tar(tar, "txt", False), "more", "image")
    write_manifest(tmp_path, build_manifest(tmp_path))
    tar_set = TarSet(tmp_path)
    with pytest.raises(StoreError) as caught:
        with_teachers(tar_set)
    assert caught.value.name == "image"
    with_teachers(tar_set, image_teacher="more")
    with pytest.raises(StoreError):
        tar_set.rows("unknown", "00000")


def test_what_is_no_set_is_refused():
    with pytest.raises(StoreError) as refused:
        with_teachers(None)
    assert refused.value.name == "folder"


def test_rows_of_several_teachers_and_of_pairs_reach_the_loss(tmp_path, tars):
    write_set(tmp_path, tars)
    for tar in tars:
        pairs = read_pairs_of_tar(tar, "txt", False)
        write_rows(tmp_path, pairs, "more", "image", scale=2)
        for modality, scale in (("image", 3), ("text", 4)):
            name = f"clip-{modality}"
            write_rows(tmp_path, pairs, name, modality, (1,), scale, cross_teacher="clip")
    write_manifest(tmp_path, build_manifest(tmp_path))
    stage = with_teachers(tmp_path, ["more", "eyes"], cross_teacher=())
    samples = webdataset.WebDataset(str(tars[1]), shardshuffle=False).compose(stage)
    batch = default_collate([*samples])
    assert batch["__key__"] == ["000004", "000006", "000007"]
    rows = (*batch["image_teacher"], batch["text_teacher"], *batch["cross_teachers"][0])
    for rows_of_teacher, scale in zip(rows, (2, 1, 1, 3, 4), strict=True):
        assert rows_of_teacher.tolist() == [[row, 2 * scale, 2 * scale] for row in (0, 2, 3)]

    features = torch.eye(3)
    config = LossConfig(rule="dr", image_teacher_weights=(1, 3))
    terms = CUSALoss(config)(
        *(features, features, features, features),
        teacher_image=batch["image_teacher"],
        teacher_text=batch["text_teacher"],
        cross_teachers=batch["cross_teachers"],
    )
    assert terms.csa > 0
    assert terms.rule > 0


def test_a_set_without_a_cross_modal_teacher_has_none_to_choose(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    for choice in ({"cross_teacher": ()}, {"image_teacher": ["eyes", "eyes"]}):
        with pytest.raises(StoreError):
            with_teachers(tar_set, **choice)


def test_a_damaged_file_of_rows_is_refused_when_it_is_read(tmp_path, tars):
    tar_set = write_set(tmp_path, tars)
    path = tmp_path / "words" / "00002.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChecksumError) as caught:
        tar_set.rows("words", "00002")
    assert caught.value.path == path

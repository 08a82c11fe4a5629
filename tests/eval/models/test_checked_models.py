"""Models to evaluate whose rows would be wrong in silence, or that fail on an item."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cusa.data.errors import DataError, ImageError, StudentError, TeacherError
from cusa.eval.models.any_model import load_encoder
from cusa.eval.models.batched import encode_images, encode_texts
from cusa.eval.models.model_encoder import ModelEncoder
from cusa.eval.models.student import load_student
from tests.helpers import Fault, fault_of, make_pairs, make_tiny_sentence, run_ok
from tests.tiny_models import (
    SIZES,
    TEXTS,
    VISION,
    pictures,
    save_clip,
    save_roberta_dual,
    save_text,
    save_vision,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models, and pictures as files."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    for number, picture in enumerate(pictures()):
        picture.save(folder / f"{number}.png")
    return folder


def _changed(encoder, modality, encode):
    """The same model with another forward pass of one tower."""
    tower = encoder._towers[modality]
    return ModelEncoder("changed", "hf", [replace(tower, encode=encode(tower.encode))], "cpu")


def test_a_dual_encoder_without_tokenizer_is_refused(home, tmp_path):
    folder = shutil.copytree(home / "clip", tmp_path / "clip")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(StudentError) as refused:
        load_encoder(str(folder), "cpu")
    assert refused.value.name == str(folder)


def test_rows_that_are_all_alike_or_change_are_refused(home):
    encoder = load_encoder(str(home / "clip"), "cpu")
    constant = _changed(
        encoder, "text", lambda encode: lambda tokens: torch.ones(len(tokens["input_ids"]), 24)
    )
    with pytest.raises(TeacherError) as refused:
        constant.text_rows(TEXTS)
    assert refused.value.name == "changed"
    noisy = _changed(
        encoder, "image", lambda encode: lambda pixels: encode(pixels) + torch.rand(len(pixels), 24)
    )
    with pytest.raises(TeacherError) as refused:
        noisy.image_rows(pictures())
    assert refused.value.name == "changed"


def test_the_item_that_a_model_fails_on_is_named(home):
    encoder = load_encoder(str(home / "clip"), "cpu")
    paths = [home / f"{number}.png" for number in range(4)]

    def fail_on(refused_value):
        def changed(encode):
            def forward(inputs):
                first = (
                    inputs["input_ids"][:, 2] if isinstance(inputs, dict) else inputs[:, 0, 0, 0]
                )
                if torch.isclose(first.float(), refused_value).any():
                    raise IndexError("index out of range in self")
                return encode(inputs)

            return forward

        return changed

    tower = encoder._towers["text"]
    word = tower.tokenize(["cat"])["input_ids"][0, 1].float()
    broken = _changed(encoder, "text", fail_on(word))
    with pytest.raises(DataError) as text_error:
        encode_texts(broken, ["a dog", "a cat", "picture number 1"])
    assert fault_of(text_error.value) == Fault(DataError, name="a cat")
    assert text_error.value.name == "a cat"
    pixel = torch.tensor(encoder._towers["image"].preprocess(pictures()[2])[0, 0, 0])
    broken = _changed(encoder, "image", fail_on(pixel))
    with pytest.raises(ImageError) as image_error:
        encode_images(broken, paths)
    assert image_error.value.path == paths[2]


def test_long_texts_are_cut_where_the_positions_end(tmp_path):
    save_roberta_dual(tmp_path / "dual")
    encoder = load_encoder(str(tmp_path / "dual"), "cpu")
    assert encoder.text_rows([" ".join(["dog"] * 90), "a cat"])["cross"].shape == (2, 24)


def test_towers_are_models_of_one_modality(tmp_path):
    save_text(
        tmp_path / "text", "CLIPTextModelWithProjection", "CLIPTextConfig",
        **SIZES, projection_dim=24, eos_token_id=2, bos_token_id=1, max_position_embeddings=30,
    )  # fmt: skip
    encoder = load_encoder(str(tmp_path / "text"), "cpu")
    assert encoder.modalities == {"text"}
    assert encoder.text_rows(TEXTS)["cross"].shape == (4, 24)
    save_vision(
        tmp_path / "image",
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        **VISION,
        projection_dim=24,
    )
    assert load_encoder(str(tmp_path / "image"), "cpu").image_rows(pictures())["cross"].shape == (
        4,
        24,
    )


def test_pictures_of_varying_size_come_in_order(tmp_path):
    save_vision(tmp_path / "dino", "Dinov2Model", "Dinov2Config", crop=False, **VISION)
    encoder = load_encoder(str(tmp_path / "dino"), "cpu")
    images = [picture.rotate(90 * (n % 2), expand=True) for n, picture in enumerate(pictures())]
    rows = encoder.image_rows(images)["cross"]
    alone = np.concatenate([encoder.image_rows([image])["cross"] for image in images])
    np.testing.assert_allclose(rows, alone, atol=1e-5)


def test_an_adapter_reads_new_images_as_its_store_did(tmp_path):
    """Its encoder pools as the store's settings tell, and turns pictures upright."""
    save_vision(tmp_path / "see", "ViTModel", "ViTConfig", **VISION)
    words, out = make_tiny_sentence(tmp_path / "words"), tmp_path / "s.h5"
    teachers = (
        "--teacher",
        f"see={tmp_path / 'see'}",
        "--teacher",
        f"read={words}",
        "--workers",
        0,
    )
    run_ok(
        "precompute",
        "--dataset",
        make_pairs(tmp_path / "d"),
        *teachers,
        "--out",
        out,
        "--pooling",
        "mean",
    )
    run_dir = tmp_path / "run"
    args = (
        "--embeddings",
        out,
        "--student",
        "adapter",
        "--run-dir",
        run_dir,
        "--epochs",
        1,
        "--batch-size",
        8,
    )
    run_ok("train", *args)
    student = load_student(run_dir, "cpu")
    assert student.encoder("image").transform["feature"] == "mean"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = pictures(1)[0]
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    rows = student.encode_image(
        [picture, tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]
    )
    np.testing.assert_allclose(rows[1:], rows[:1].repeat(2, axis=0), atol=1e-6)

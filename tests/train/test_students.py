"""Dual encoders of many kinds as students: what is refused, what is cut, how pictures are seen."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from cusa.data.errors import FORWARD_PASS, ImageError, StudentError
from cusa.train.build_student import build_student
from cusa.train.student_config import StudentConfig
from cusa.train.student_inputs import ImageFiles
from cusa.train.towers.dual_encoder import load_dual_encoder
from tests.helpers import Fault, fault_of
from tests.tiny_models import (
    SIZES,
    TEXTS,
    VISION,
    pictures,
    save_clip,
    save_processor,
    save_roberta_dual,
    save_tokenizer,
    save_vision,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students") / "clip"
    save_clip(folder)
    return folder


def _load(folder):
    return build_student(StudentConfig(name=str(folder)))


def test_a_folder_without_tokenizer_is_refused(clip, tmp_path):
    """transformers would make one up that takes all texts for the same."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(StudentError) as caught:
        _load(folder)
    assert fault_of(caught.value) == Fault(StudentError, path=folder, name=str(folder))


def test_a_tokenizer_that_confuses_all_texts_is_refused(clip, tmp_path):
    """A text tower that pools the first token, which is the same for all."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["eos_token_id"] = 1
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StudentError) as refused:
        _load(folder)
    assert fault_of(refused.value) == Fault(StudentError, name=str(folder))


def test_texts_are_cut_where_the_positions_end(tmp_path):
    save_roberta_dual(tmp_path / "dual")
    student, towers = _load(tmp_path / "dual")
    assert towers.text.preparation.max_length == 32
    with torch.no_grad():
        assert student.eval().encode_text(
            towers.text.preparation.tokens([" ".join(["dog"] * 90), "a"])
        ).cross.shape == (2, 24)


def test_the_end_token_pads_where_no_other_does(clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "clip")
    save_tokenizer(folder, pad=False)
    student, towers = _load(folder)
    with torch.no_grad():
        rows = student.eval().encode_text(towers.text.preparation.tokens(TEXTS)).cross
        alone = torch.cat(
            [student.encode_text(towers.text.preparation.tokens([text])).cross for text in TEXTS]
        )
    torch.testing.assert_close(rows, alone, atol=1e-5, rtol=0)


def test_pictures_of_varying_size_are_refused(tmp_path):
    save_clip(tmp_path / "clip", crop=False)
    with pytest.raises(StudentError) as refused:
        _load(tmp_path / "clip")
    assert fault_of(refused.value) == Fault(StudentError, name=str(tmp_path / "clip"))


TEXT = {**SIZES, "max_position_embeddings": 30, "pad_token_id": 0}
ENDS = {**TEXT, "eos_token_id": 2, "bos_token_id": 1}
ROBERTA = {**SIZES, "max_position_embeddings": 34, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("family", "text", "more", "limit"),
    [
        ("CLIPSeg", ENDS, {"projection_dim": 24}, 30),
        ("ChineseCLIP", TEXT, {"projection_dim": 24}, 30),
        ("AltCLIP", {**ROBERTA, "project_dim": 24}, {"projection_dim": 24}, 32),
        ("OwlViT", ENDS, {"projection_dim": 24}, 30),
        ("Siglip", {**TEXT, "projection_size": 32}, {}, 30),
        ("Aimv2", ENDS, {"projection_dim": 24}, 30),
    ],
)
def test_families(tmp_path, family, text, more, limit):
    size = save_tokenizer(tmp_path, max_length=None)
    config = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    config = config(text_config={**text, "vocab_size": size}, vision_config=VISION, **more)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path)
    save_processor(tmp_path)
    student, towers = _load(tmp_path)
    assert towers.text.preparation.max_length == limit
    texts = [*TEXTS, " ".join(["dog"] * 90)]
    with torch.no_grad():
        student.eval()
        features = student.encode_text(towers.text.preparation.tokens(texts)).cross
        want = towers.backbone.get_text_features(**towers.text.preparation.tokens(texts))
        want = want if isinstance(want, torch.Tensor) else want.pooler_output
        torch.testing.assert_close(features, student.text_heads["cross"](want))
        assert len({tuple(row.tolist()) for row in features}) == len(texts)
        assert student.encode_image(towers.image.preparation.pixels(pictures())).cross.shape == (
            4,
            student.image_heads["cross"][0].normalized_shape[0],
        )


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "FlavaModel",
            {"image_config": VISION, "text_config": SIZES, "multimodal_config": SIZES},
        ),
        (
            "Siglip2Model",
            {"vision_config": {**SIZES, "num_patches": 4, "patch_size": 16}},
        ),
        ("ViltModel", VISION),
    ],
)
def test_families_that_take_other_inputs_are_refused(tmp_path, name, config):
    save_tokenizer(tmp_path)
    small = {"vocab_size": 60, **SIZES}
    if name == "Siglip2Model":
        config = {
            **config,
            "text_config": {**small, "projection_size": 32, "max_position_embeddings": 30},
        }
    torch.manual_seed(0)
    config = getattr(transformers, name.replace("Model", "Config"))(**config)
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(StudentError) as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_a_model_fails_on_is_told(clip):
    """The first item of a batch that fails alone, too."""
    loaded = load_dual_encoder(str(clip), True)
    tokens = loaded.tokenization.tokens(TEXTS)
    tokens["input_ids"][2, 1] = 9_999
    with pytest.raises(StudentError) as caught:
        loaded.text_tower(tokens)
    assert fault_of(caught.value) == Fault(StudentError, location=FORWARD_PASS, name=str(clip))
    with pytest.raises(StudentError) as refused:
        loaded.image_tower(torch.zeros(2, 3, 48, 32))
    assert fault_of(refused.value) == Fault(StudentError, location=FORWARD_PASS, name=str(clip))

    def exhausted(inputs):
        raise torch.OutOfMemoryError("more")

    loaded.image_tower._encode = exhausted
    with pytest.raises(torch.OutOfMemoryError):  # that is told elsewhere
        loaded.image_tower(torch.zeros(2, 3, 32, 32))


def test_code_of_a_folder_is_never_run(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Model: pass\n"
    )
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Model", "AutoModel": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    for pretrained in (True, False):
        with pytest.raises(StudentError) as refused:
            build_student(StudentConfig(name=str(folder)), pretrained=pretrained)
        assert fault_of(refused.value) == Fault(StudentError, path=folder, name=str(folder))
    assert not (tmp_path / "executed").exists()


def test_pictures_are_seen_upright_and_over_white(clip, tmp_path):
    preparation = load_dual_encoder(str(clip), True).image_processing
    picture = pictures(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    picture.save(tmp_path / "upright.png")
    picture.rotate(180).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (60, 40)).save(tmp_path / "clear.png")
    Image.new("RGB", (60, 40), "white").save(tmp_path / "white.png")
    Image.new("L", (1, 1_000_000)).save(tmp_path / "narrow.png")
    names = ["upright.png", "turned.png", "clear.png", "white.png", "narrow.png"]
    split = SimpleNamespace(image_paths=names)
    inputs = ImageFiles(split, tmp_path, preparation, np.array([]))
    pixels = inputs.read(np.arange(4))
    torch.testing.assert_close(pixels[0], pixels[1])
    torch.testing.assert_close(pixels[2], pixels[3])
    with pytest.raises(ImageError) as narrow:
        inputs.read(np.array([4]))
    assert fault_of(narrow.value) == Fault(ImageError, path=tmp_path / "narrow.png")
    assert narrow.value.path == tmp_path / "narrow.png"


def test_vision_towers_are_no_students(tmp_path):
    save_vision(tmp_path / "vit", "ViTModel", "ViTConfig", **VISION)
    save_tokenizer(tmp_path / "vit")
    with pytest.raises(StudentError) as refused:
        _load(tmp_path / "vit")
    assert fault_of(refused.value) == Fault(StudentError, name=str(tmp_path / "vit"))

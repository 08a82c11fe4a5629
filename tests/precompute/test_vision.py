"""Vision models as teachers: what of their output becomes the row, and what is refused."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cusa.data.encoders.vision_encoder import POOLING
from cusa.data.errors import FileFormatError, ImageError, SettingError, TeacherError
from cusa.data.images import load_image
from cusa.data.store.reader import EmbeddingStore
from cusa.precompute.audit import audit
from cusa.precompute.first_batch import FirstBatchCheck
from cusa.precompute.teachers import parse_teacher
from tests.helpers import Fault, fault_of, make_pairs, make_tiny_sentence, run, run_failure, run_ok
from tests.tiny_models import MAPS, SIZES, VISION, pictures, save_clip, save_vision


def _load(folder, pooling=None):
    return parse_teacher(f"see={folder}").load("cpu", None, pooling)


def _checked_rows(teacher, images):
    inputs = teacher.inputs(images)
    rows = teacher.rows(inputs, "cpu", "fp32")
    FirstBatchCheck(teacher, "cpu", "fp32")("see", inputs, rows)
    return rows


def _unit(features):
    return torch.nn.functional.normalize(features, dim=-1).numpy()


@torch.inference_mode()
def _output(model, teacher, images, **more):
    pixels = torch.from_numpy(np.stack([teacher.preprocess(image) for image in images]))
    return model(pixel_values=pixels, **more)


CHOICES = [
    ("ViTModel", "ViTConfig", VISION, "pooler", lambda out: out.pooler_output),
    ("Dinov2Model", "Dinov2Config", VISION, "pooler", lambda out: out.last_hidden_state[:, 0]),
    ("BeitModel", "BeitConfig", VISION, "pooler", lambda out: out.pooler_output),
    ("SiglipVisionModel", "SiglipVisionConfig", VISION, "pooler", lambda out: out.pooler_output),
    ("ConvNextModel", "ConvNextConfig", MAPS, "pooler", lambda out: out.pooler_output),
    (
        "SwinModel",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        },
        "pooler",
        lambda out: out.last_hidden_state.mean(dim=1),
    ),
    (
        "ResNetModel",
        "ResNetConfig",
        {"embedding_size": 8, **MAPS},
        "pooler",
        lambda out: out.last_hidden_state.mean(dim=(2, 3)),
    ),
    ("ViTMSNModel", "ViTMSNConfig", VISION, "first_token", lambda out: out.last_hidden_state[:, 0]),
    (
        "Data2VecVisionModel",
        "Data2VecVisionConfig",
        VISION,
        "first_token",
        lambda out: out.last_hidden_state[:, 0],
    ),
    ("IJepaModel", "IJepaConfig", VISION, "mean", lambda out: out.last_hidden_state.mean(dim=1)),
    (
        "SegformerModel",
        "SegformerConfig",
        {"num_attention_heads": [1] * 4, **MAPS},
        "mean",
        lambda out: out.last_hidden_state.mean(dim=(2, 3)),
    ),
    (
        "PoolFormerModel",
        "PoolFormerConfig",
        MAPS,
        "mean",
        lambda out: out.last_hidden_state.mean(dim=(2, 3)),
    ),
    (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {**VISION, "projection_dim": 24},
        "image_embeds",
        lambda out: out.image_embeds,
    ),
    (
        "BlipVisionModel",
        "BlipVisionConfig",
        {**VISION, "initializer_range": 0.5},
        "pooler",
        lambda out: out.pooler_output,
    ),
]


@pytest.mark.parametrize(("name", "config", "settings", "feature", "reference"), CHOICES)
def test_what_becomes_the_row(tmp_path, name, config, settings, feature, reference):
    model = save_vision(tmp_path / "see", name, config, **settings)
    teacher = _load(tmp_path / "see")
    assert teacher.transform["feature"] == feature
    images = pictures()
    rows = _checked_rows(teacher, images)
    assert rows.shape == (4, teacher.dim)
    np.testing.assert_allclose(
        rows, _unit(reference(_output(model, teacher, images)).flatten(1)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "config", "more", "first"),
    [
        ("ViTModel", "ViTConfig", {}, 1),
        ("DeiTModel", "DeiTConfig", {}, 2),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 3}, 4),
        ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 3}, 4),
        ("YolosModel", "YolosConfig", {"num_detection_tokens": 5, "image_size": [32, 32]}, 1),
        ("IJepaModel", "IJepaConfig", {}, 0),
    ],
)
def test_the_mean_is_over_the_patches_alone(tmp_path, name, config, more, first):
    model = save_vision(tmp_path / "see", name, config, **{**VISION, **more})
    teacher = _load(tmp_path / "see", "mean")
    images = pictures()
    tokens = _output(model, teacher, images).last_hidden_state
    np.testing.assert_allclose(
        _checked_rows(teacher, images), _unit(tokens[:, first : first + 4].mean(1)), atol=1e-5
    )


def test_the_mean_leaves_out_a_pooled_output_among_the_tokens(tmp_path):
    """DINOv3's ConvNeXt puts it before its 16 patches."""
    from transformers import BitImageProcessorPil

    model = save_vision(tmp_path / "see", "DINOv3ConvNextModel", "DINOv3ConvNextConfig", **MAPS)
    size = {"height": 128, "width": 128}
    BitImageProcessorPil(size={"shortest_edge": 128}, crop_size=size).save_pretrained(
        tmp_path / "see"
    )
    teacher = _load(tmp_path / "see", "mean")
    tokens = _output(model, teacher, pictures()).last_hidden_state
    assert tokens.shape[1] == 17
    np.testing.assert_allclose(
        _checked_rows(teacher, pictures()), _unit(tokens[:, 1:].mean(1)), atol=1e-5
    )


def test_a_pooling_of_ones_own(tmp_path):
    model = save_vision(tmp_path / "see", "ViTModel", "ViTConfig", **VISION)
    teacher = _load(tmp_path / "see", "cls")
    assert teacher.transform["feature"] == "first_token"
    tokens = _output(model, teacher, pictures()).last_hidden_state
    np.testing.assert_allclose(_checked_rows(teacher, pictures()), _unit(tokens[:, 0]), atol=1e-5)
    clip = save_clip(tmp_path / "clip")
    tower = _load(tmp_path / "clip", "mean")
    tokens = _output(clip.vision_model, tower, pictures()).last_hidden_state
    np.testing.assert_allclose(
        _checked_rows(tower, pictures()), _unit(tokens[:, 1:].mean(1)), atol=1e-5
    )


def test_a_pooling_that_a_model_has_not_is_refused(tmp_path):
    save_vision(tmp_path / "jepa", "IJepaModel", "IJepaConfig", **VISION)
    for pooling in ("cls", "pooler"):
        with pytest.raises(TeacherError) as caught:
            _load(tmp_path / "jepa", pooling)
        assert caught.value.location == POOLING
    save_vision(tmp_path / "vit", "ViTModel", "ViTConfig", **VISION)
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    # transformers would draw them at random.
    with pytest.raises(TeacherError) as caught:
        _load(tmp_path / "vit", "pooler")
    assert caught.value.location == POOLING
    assert _load(tmp_path / "vit").transform["feature"] == "first_token"


def test_a_masked_autoencoder_sees_all_patches_in_their_order(tmp_path):
    model = save_vision(tmp_path / "see", "ViTMAEModel", "ViTMAEConfig", **VISION)
    teacher = _load(tmp_path / "see")
    assert teacher.transform["feature"] == "first_token"
    model.config.mask_ratio = model.embeddings.config.mask_ratio = 0.0
    tokens = _output(
        model, teacher, pictures(), noise=torch.arange(4.0).expand(4, -1)
    ).last_hidden_state
    np.testing.assert_allclose(_checked_rows(teacher, pictures()), _unit(tokens[:, 0]), atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_varying_size_are_batched_by_size(tmp_path, workers):
    model = save_vision(tmp_path / "see", "Dinov2Model", "Dinov2Config", crop=False, **VISION)
    manifest = make_pairs(tmp_path / "d")
    for number in range(0, 12, 3):
        path = tmp_path / "d" / f"{number:03d}.jpg"
        Image.open(path).rotate(90, expand=True).save(path)
    words, out = make_tiny_sentence(tmp_path / "words"), tmp_path / "s.h5"
    teachers = ("--teacher", f"see={tmp_path / 'see'}", "--teacher", f"words={words}")
    more = ("--dtype", "float32", "--workers", workers, "--batch-size", 5)
    run_ok("precompute", "--dataset", manifest, *teachers, "--out", out, *more)
    store = EmbeddingStore(out)
    teacher = _load(tmp_path / "see")
    for row, path in enumerate(store.split("train").image_paths):
        image = load_image(store.image_root / path)
        assert teacher.preprocess(image).shape == ((3, 42, 32) if row % 3 == 0 else (3, 32, 42))
        want = _unit(_output(model, teacher, [image]).pooler_output)
        np.testing.assert_allclose(store.embeddings("see", "train").gather([row]), want, atol=1e-5)
    assert all(result.least > 0.9999 for result in audit(store, "see", None, 8, 0, "cpu"))


def test_a_model_that_takes_one_size_alone_names_the_picture(tmp_path):
    """CLIP has positions for 32 x 32 pixels; its processor makes others."""
    save_clip(tmp_path / "clip", crop=False)
    with pytest.raises(TeacherError) as caught:
        _load(tmp_path / "clip")
    assert caught.value.name == str(tmp_path / "clip")


def test_images_of_patches_and_masks(tmp_path):
    """SigLIP 2 with its native aspect takes patches, a mask, and shapes."""
    from transformers import Siglip2ImageProcessorPil, Siglip2VisionConfig, Siglip2VisionModel

    folder = tmp_path / "see"
    torch.manual_seed(0)
    model = Siglip2VisionModel(Siglip2VisionConfig(**SIZES, num_patches=16, patch_size=16)).eval()
    model.save_pretrained(folder)
    processor = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16)
    processor.save_pretrained(folder)
    images = [*pictures(2), *pictures(2, (30, 90))]
    with torch.inference_mode():
        output = model(**processor(images, return_tensors="pt"))
    rows = _checked_rows(_load(folder), images)
    np.testing.assert_allclose(rows, _unit(output.pooler_output), atol=1e-5)
    mask = processor(images, return_tensors="pt")["pixel_attention_mask"].bool()
    assert not mask.all()
    means = [
        tokens[real].mean(dim=0)
        for tokens, real in zip(output.last_hidden_state, mask, strict=True)
    ]
    np.testing.assert_allclose(
        _checked_rows(_load(folder, "mean"), images), _unit(torch.stack(means)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        (
            "PixtralVisionModel",
            "PixtralVisionConfig",
            {**SIZES, "image_size": 32, "patch_size": 16},
        ),
        (
            "PerceiverModel",
            "PerceiverConfig",
            {"num_latents": 4, "d_latents": 8, "d_model": 8},
        ),
        ("TimesformerModel", "TimesformerConfig", {**VISION, "num_frames": 2}),
    ],
)
def test_models_that_take_other_inputs_are_refused(tmp_path, name, config, settings):
    save_vision(tmp_path / "see", name, config, **settings)
    with pytest.raises(TeacherError) as caught:
        _load(tmp_path / "see")
    assert caught.value.name in (name, str(tmp_path / "see"))
    assert "\n" not in str(caught.value)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    save_vision(tmp_path / "see", "DINOv3ViTModel", "DINOv3ViTConfig", **VISION)
    processor = tmp_path / "see" / "preprocessor_config.json"
    settings = json.loads(processor.read_text())
    processor.write_text(
        json.dumps({**settings, "image_processor_type": "DINOv3ViTImageProcessorFast"})
    )
    try:
        import torchvision  # noqa: F401
    except ImportError:
        with pytest.raises(TeacherError) as caught:
            _load(tmp_path / "see")
        assert "pip install torchvision" in str(caught.value)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(
        '{"architecture": "resnet18", "num_features": 512}'
    )
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("cusa.precompute.teachers.find_spec", lambda name: None)
    with pytest.raises(TeacherError) as caught:
        parse_teacher(f"see={tmp_path / 'timm'}")
    assert fault_of(caught.value) == Fault(TeacherError, path=tmp_path / "timm", name="timm")


def test_kinds_of_folders(tmp_path):
    """A processor_config.json, or the model's own settings alone, make a vision model."""
    save_vision(tmp_path / "see", "ResNetModel", "ResNetConfig", embedding_size=8, **MAPS)
    want = _checked_rows(_load(tmp_path / "see"), pictures())
    settings = tmp_path / "see" / "preprocessor_config.json"
    (tmp_path / "see" / "processor_config.json").write_text(
        f'{{"image_processor": {settings.read_text()}}}'
    )
    settings.unlink()
    np.testing.assert_array_equal(_checked_rows(_load(tmp_path / "see"), pictures()), want)
    (tmp_path / "see" / "processor_config.json").unlink()
    with pytest.raises(TeacherError):
        _load(tmp_path / "see")
    (tmp_path / "see" / "config.json").write_text("[]")
    with pytest.raises(FileFormatError):
        parse_teacher(f"see={tmp_path / 'see'}")


def test_code_of_a_folder_is_never_run(tmp_path, monkeypatch):
    """transformers would ask on standard input, and run it on "y"."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    save_vision(tmp_path / "see", "ViTModel", "ViTConfig", **VISION)
    (tmp_path / "see" / "own.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Model: pass\n"
    )
    names = {"AutoConfig": "own.Model", "AutoModel": "own.Model", "AutoImageProcessor": "own.Model"}
    changes = {
        "config.json": {"model_type": "own"},
        "preprocessor_config.json": {"image_processor_type": "Own"},
    }
    for file, change in changes.items():
        folder = shutil.copytree(tmp_path / "see", tmp_path / file)
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**settings, "auto_map": names, **change}))
        with pytest.raises(TeacherError) as caught:
            _load(folder)
        assert caught.value.path == folder
    assert not (tmp_path / "executed").exists()


def test_the_pooling_is_named_recorded_and_kept(tmp_path):
    save_vision(tmp_path / "see", "ViTModel", "ViTConfig", **VISION)
    manifest, words = make_pairs(tmp_path / "d"), make_tiny_sentence(tmp_path / "words")
    out = tmp_path / "s.h5"
    teachers = (
        "--teacher",
        f"see={tmp_path / 'see'}",
        "--teacher",
        f"words={words}",
        "--workers",
        0,
    )
    text = run_ok("precompute", "--dataset", manifest, *teachers, "--out", out, "--pooling", "mean")
    assert "see: the mean over the patches (mean) becomes the row" in text
    store = EmbeddingStore(out)
    assert store.teachers["see"].transform["feature"] == "mean"
    result = audit(store, "see", None, 8, 0, "cpu")[
        0
    ]  # it loads the teacher with the pooling recorded
    assert result.least > 0.9999
    assert result.differing == ()
    refused = run("precompute", "--dataset", manifest, *teachers, "--out", out)
    assert refused.exit_code == 1
    assert "transform" in refused.output
    own_pooling = (
        "--teacher",
        f"words={words}",
        "--teacher",
        "efficientnet-lite0",
        "--pooling",
        "mean",
    )
    error = run_failure(
        "precompute", "--dataset", manifest, *own_pooling, "--out", tmp_path / "t.h5"
    )
    assert (type(error), error.name) == (SettingError, "pooling")


def test_an_audit_with_a_model_without_the_recorded_pooling_says_so(tmp_path):
    """And names no option of cusa-precompute."""
    save_vision(tmp_path / "see", "ViTModel", "ViTConfig", **VISION)
    save_vision(tmp_path / "other", "ViTMAEModel", "ViTMAEConfig", **VISION)
    stored = _load(tmp_path / "see").settings("fp32", "float16", "albef")
    assert stored.transform["feature"] == "pooler"
    with pytest.raises(TeacherError) as caught:
        parse_teacher(f"see={tmp_path / 'other'}").load_as(stored, "cpu")
    assert fault_of(caught.value) == Fault(TeacherError, name="see")
    assert caught.value.name == "see"


def test_narrow_pictures_are_errors_of_their_file(tmp_path):
    save_vision(tmp_path / "see", "ViTModel", "ViTConfig", **VISION)
    teacher = _load(tmp_path / "see")
    with pytest.raises(ImageError):
        teacher.preprocess(Image.new("L", (1, 1_000_000)))
    manifest, words = make_pairs(tmp_path / "d"), make_tiny_sentence(tmp_path / "words")
    Image.new("L", (1, 1_000_000)).save(tmp_path / "d" / "003.png")
    manifest.write_text(manifest.read_text().replace("003.jpg", "003.png"))
    teachers = (
        "--teacher",
        f"see={tmp_path / 'see'}",
        "--teacher",
        f"words={words}",
        "--workers",
        0,
    )
    result = run("precompute", "--dataset", manifest, *teachers, "--out", tmp_path / "s.h5")
    assert result.exit_code == 1
    assert "003.png cannot be preprocessed (1 x 1,000,000 pixels are too narrow" in result.output
    run_ok(
        "precompute",
        "--dataset",
        manifest,
        *teachers,
        "--out",
        tmp_path / "s.h5",
        "--on-error",
        "skip",
    )
    assert EmbeddingStore(tmp_path / "s.h5").embeddings("see", "train").skipped.tolist() == [3]

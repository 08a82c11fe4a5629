"""Cross-modal teachers: rows of both modalities from one load, with the model's own logits."""

import dataclasses
import gc
import json

import numpy as np
import pytest
import torch
from PIL import Image

import cusa
from cusa.data.errors import SettingError, TeacherError
from cusa.data.store.cross_teachers import cross_teachers, logit_bias, logit_scale
from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.tar_set import TarSet
from cusa.precompute.teachers import dual_encoder
from cusa.precompute.teachers.cross_modal import parse_teachers
from cusa.train.saving.run_dir import load_run
from tests.data.tars.tar_files import contents, write_tars
from tests.helpers import (
    ADAPTER,
    make_pairs,
    make_store,
    make_tiny_clip,
    make_tiny_vit,
    run_fault,
    run_ok,
    run_ranks,
    settings,
    unit_rows,
)
from tests.tiny_models import (
    SIZES,
    save_roberta_dual,
    save_siglip,
    save_text,
)

AS_WRITTEN = ("--dtype", "float32", "--normalizer", "none")
MODELS = {"clip": make_tiny_clip, "siglip": save_siglip, "dual": save_roberta_dual}


@pytest.fixture(autouse=True)
def _nothing_loaded():
    """Models of earlier tests may still be there."""
    dual_encoder._loaded_models.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, save in MODELS.items():
        save(folder / name)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"), n=12)


@pytest.fixture(scope="module")
def index(folder, manifest):
    """A store with the rows of two cross-modal teachers."""
    index = folder / "store.h5"
    teachers = (
        "--teacher",
        f"clip:{folder / 'clip'}",
        "--teacher",
        f"s=siglip:{folder / 'siglip'}",
    )
    run_ok("precompute", "--dataset", manifest, *teachers, "--out", index, *AS_WRITTEN)
    return index


def _own_logits(folder, image_paths, captions):
    """The logits of a model, by transformers alone: float [images, captions]."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    pictures = [Image.open(path).convert("RGB") for path in image_paths]
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=pictures, return_tensors="pt")
    padding = {"padding": "max_length", "max_length": 16} if folder.name == "siglip" else {}
    tokens = AutoTokenizer.from_pretrained(folder)(
        captions, return_tensors="pt", **{"padding": True, **padding}
    )
    tokens.pop("token_type_ids", None)
    if padding:
        tokens.pop("attention_mask")  # SigLIP reads its padding
    with torch.inference_mode():
        return model(**pixels, **tokens).logits_per_image.numpy()


@pytest.mark.parametrize(("name", "model"), [("clip", "clip"), ("s", "siglip")])
def test_stored_rows_with_the_stored_scale_give_the_models_own_logits(index, folder, name, model):
    store = EmbeddingStore(index)
    image_name, text_name = cross_teachers(store.teachers)[name]
    assert (image_name, text_name) == (f"{name}-image", f"{name}-text")
    split = store.split("train")
    images, texts = (np.asarray(store[name, "train"]) for name in (image_name, text_name))
    scale = logit_scale(store.teachers[image_name])
    bias = logit_bias(store.teachers[text_name]) or 0.0
    paths = [store.image_root / path for path in split.image_paths]
    own_logits = _own_logits(folder / model, paths, split.captions[:])
    np.testing.assert_allclose(scale * images @ texts.T + bias, own_logits, atol=1e-3)
    assert np.std(own_logits) > 1e-2
    assert (bias != 0) == (model == "siglip")


@pytest.mark.parametrize("name", MODELS)
def test_both_halves_come_from_one_load(folder, monkeypatch, name):
    loads = []
    load_model = dual_encoder.load_embedding_model

    def load(files):
        loads.append(files)
        return load_model(files)

    monkeypatch.setattr(dual_encoder, "load_embedding_model", load)
    requests = parse_teachers(f"clip:{folder / name}")
    halves = [request.load("cpu") for request in requests]
    assert [half.modality for half in halves] == ["image", "text"]
    assert len({half.weights_sha256 for half in halves}) == 1
    assert len(loads) == 1
    # Nothing keeps the model once no teacher needs it.
    del halves
    gc.collect()
    assert not dual_encoder._loaded_models


def test_a_run_learns_from_a_stored_cross_modal_teacher(index, tmp_path):
    """Its two rows are encoders and teachers, too."""
    args = ("--embeddings", index, *ADAPTER, "--epochs", 1, "--batch-size", 8)
    chosen = ("--image-encoder", "clip-image", "--text-encoder", "s-text")
    rule = ("--set", "loss.rule=dr", "--set", "loss.terms=[]")
    both = ("--cross-teacher", "clip", "--cross-teacher", "s")
    run_ok("train", *args, *chosen, *rule, *both, "--run-dir", tmp_path / "run")
    config, _ = load_run(tmp_path / "run")
    assert config.loss.cross_teacher_taus == pytest.approx([0.07, np.exp(-4)], rel=1e-3)
    assert config.loss.dr_sigmoid.teacher_bias is None  # CLIP has none
    student = cusa.load_student(tmp_path / "run")
    [row] = student.encode_text(["picture number 3, version 1"])
    assert np.isfinite(row).all()


@pytest.mark.parametrize(("given", "bias"), [((), -12.0), ((-3.0,), -3.0)])
def test_the_sigmoid_rule_reads_the_stored_bias(index, tmp_path, given, bias):
    args = ("--embeddings", index, *ADAPTER, "--epochs", 1, "--batch-size", 8)
    chosen = ("--image-encoder", "s-image", "--text-encoder", "s-text", "--cross-teacher", "s")
    rule = ["--set", "loss.rule=dr-sigmoid", "--set", "loss.terms=[]"]
    for value in given:
        rule += ["--set", f"loss.dr_sigmoid.teacher_bias={value}"]
    run_ok("train", *args, *chosen, *rule, "--run-dir", tmp_path / "run")
    config, _ = load_run(tmp_path / "run")
    assert config.loss.dr_sigmoid.teacher_bias == bias


def test_info_names_the_cross_modal_teacher(index):
    out = run_ok("store", "info", index)
    assert out.count("of the cross-modal teacher clip") == 2
    content = json.loads(run_ok("store", "info", index, "--json"))
    assert content["teachers"]["s-text"]["transform"]["cross_teacher"] == "s"


def test_stage_one_and_the_audit_go_on_with_what_is_stored(index, folder, manifest):
    teacher = ("--teacher", f"clip:{folder / 'clip'}")
    out = run_ok("precompute", "--dataset", manifest, *teacher, "--out", index, *AS_WRITTEN)
    assert "clip-image" in out
    run_ok("store", "audit", index)


def test_ranks_and_parts_of_a_run_give_the_bytes_of_one_process(folder, manifest, tmp_path):
    teacher = ("--teacher", f"clip:{folder / 'clip'}", "--batch-size", 2)
    args = ("--dataset", manifest, *teacher, "--shard-rows", 5, *AS_WRITTEN, "--out")
    one, ranks, parts = (tmp_path / name / "store.h5" for name in ("one", "ranks", "parts"))
    run_ok("precompute", *args, one)
    expected = contents(one.parent / "store")
    assert len([path for path in expected if path.startswith("clip-text")]) > 1
    completed = run_ranks(2, "precompute", *map(str, (*args, ranks)))
    assert completed.returncode == 0, completed.stderr
    assert contents(ranks.parent / "store") == expected

    n_shards = len([path for path in expected if path.endswith(".h5")])
    for first, stop in ((2, n_shards), (0, 2)):
        run_ok("precompute", *args, parts, "--shard-range", f"{first}:{stop}")
    run_ok("store", "merge", parts, *parts.parent.glob("store.part-[0-9]*.h5"))
    assert contents(parts.parent / "store") == expected


def test_tars(folder, tmp_path):
    write_tars(tmp_path / "tars", 2, 4)
    teacher = f"clip:{folder / 'clip'}"
    out = tmp_path / "set"
    run_ok(
        "precompute",
        "--dataset",
        tmp_path / "tars" / "{00000..00001}.tar",
        "--teacher",
        teacher,
        "--out",
        out,
    )
    teachers = TarSet(out).teachers
    assert cross_teachers(teachers) == {"clip": ("clip-image", "clip-text")}
    assert list(teachers) == ["clip-image", "clip-text"]


def test_models_of_one_modality_are_refused(tmp_path):
    make_tiny_vit(tmp_path / "vit")
    save_text(tmp_path / "bert", "BertModel", "BertConfig", **SIZES)
    for name in ("vit", "bert"):
        with pytest.raises(TeacherError):
            parse_teachers(f"clip:{tmp_path / name}")[0].load("cpu")


def test_other_logits_than_scaled_cosines_are_refused(folder, monkeypatch):
    monkeypatch.setattr(dual_encoder, "_logit_scale", lambda model: 14.0)
    with pytest.raises(TeacherError) as caught:
        parse_teachers(f"clip:{folder / 'clip'}")[0].load("cpu")
    assert caught.value.name == str(folder / "clip")


@pytest.mark.parametrize(
    "text", ["clip:", "clip:none", "x=clip:", "siglip:/nowhere/at/all", "clip:a/b/c"]
)
def test_what_is_no_model(text):
    with pytest.raises(TeacherError):
        parse_teachers(text)


def test_names(folder):
    clip = folder / "clip"
    assert [request.name for request in parse_teachers(f"c=clip:{clip}")] == ["c-image", "c-text"]
    with pytest.raises(SettingError):
        parse_teachers(f"a b=clip:{clip}")


def test_halves_of_different_weights_or_names_are_no_pair():
    def half(modality, name, weights):
        transform = {"cross_teacher": name, "logit_scale": 1.0}
        return settings(modality, 4, transform=transform, weights_sha256=weights)

    teachers = {"i": half("image", "a", "1"), "t": half("text", "a", "1")}
    assert cross_teachers(teachers) == {"a": ("i", "t")}
    assert cross_teachers({**teachers, "t": half("text", "a", "2")}) == {}
    assert cross_teachers({**teachers, "t": half("text", "b", "1")}) == {}
    narrow = dataclasses.replace(teachers["t"], dim=3)
    assert cross_teachers({**teachers, "t": narrow}) == {}
    assert cross_teachers({"i": teachers["i"]}) == {}


@pytest.mark.parametrize("value", [None, True, "50", float("inf"), float("nan"), [50]])
def test_a_scale_that_is_no_number(value):
    assert logit_scale(settings("image", 4, transform={"logit_scale": value})) is None


def test_rows_computed_elsewhere_are_a_pair_when_both_halves_are_imported(tmp_path):
    index = make_store(tmp_path)
    split = EmbeddingStore(index).split("train")
    for modality, ids in (("image", split.image_ids), ("text", split.caption_ids)):
        rows = unit_rows(len(ids), 6, seed=3)
        np.save(tmp_path / "rows.npy", rows)
        (tmp_path / "ids.txt").write_text("\n".join(ids))
        named = ("--teacher", f"h14-{modality}", "--modality", modality, "--split", "train")
        cross = ("--cross-teacher", "h14", "--logit-scale", 100)
        files = (tmp_path / "rows.npy", "--ids", tmp_path / "ids.txt")
        run_ok("store", "import", index, *files, *named, *cross)
    teachers = EmbeddingStore(index).teachers
    assert cross_teachers(teachers) == {"h14": ("h14-image", "h14-text")}
    assert logit_scale(teachers["h14-text"]) == 100


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--logit-scale", 100), "cross_teacher"),
        (("--cross-teacher", "a b"), "name"),
        (("--cross-teacher", "a", "--logit-scale", 0), "logit_scale"),
        (("--cross-teacher", "a", "--logit-scale", "nan"), "logit_scale"),
        (("--cross-teacher", "a", "--logit-bias", "inf"), "logit_bias"),
    ],
)
def test_halves_that_cannot_be_imported(tmp_path, options, name):
    index = make_store(tmp_path)
    np.save(tmp_path / "rows.npy", unit_rows(40, 6, seed=3))
    (tmp_path / "ids.txt").write_text("\n".join(EmbeddingStore(index).split("train").image_ids))
    files = (tmp_path / "rows.npy", "--ids", tmp_path / "ids.txt")
    named = ("--teacher", "half", "--modality", "image", "--split", "train")
    fault = run_fault("store", "import", index, *files, *named, *options)
    assert (fault.kind, fault.name) == (SettingError, name)

"""Several teachers of a modality, and cross-modal ones, in one run."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch

import cusa
from cusa.data.errors import SettingError, StoreError
from cusa.data.records import Dataset
from cusa.data.store.reader import EmbeddingStore
from cusa.hosts.pairs import SplitTeachers
from cusa.train.config_building import build_config
from cusa.train.loader import Batch
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.rules.settings import DrSigmoidConfig
from cusa.train.saving.run_dir import load_run, read_metrics
from cusa.train.teacher_rows import Teachers
from cusa.train.trainer import Trainer
from cusa.train.used_teachers import used_teachers, with_logits_of
from tests.helpers import (
    ADAPTER,
    Fault,
    ForkedCommand,
    add_teacher,
    kill_at,
    make_store,
    records,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)
from tests.train.same_runs import assert_same_run

SIZES = {"train": 40, "val": 10, "test": 8}
BOTH = ("--image-teacher", "vision", "--image-teacher", "eyes", "--text-teacher", "words")
ONE = ("--image-teacher", "vision", "--text-teacher", "words")
ENCODERS = ("--image-encoder", "vision", "--text-encoder", "words")


def _add(index, name, modality, dim, seed, **transform):
    """Add a teacher of made-up rows to a store."""
    splits = {split: records(split, n) for split, n in SIZES.items()}
    dataset = Dataset("made-up", index.parent, splits)
    captions = 2 if modality == "text" else 1
    rows = {split: unit_rows(captions * n, dim, seed) for split, n in SIZES.items()}
    add_teacher(index, dataset, name, settings(modality, dim, transform=transform), rows)


def _add_cross_teacher(index, name, scale=50.0, seed=20):
    for number, modality in enumerate(("image", "text")):
        transform = {"cross_teacher": name, "logit_scale": scale}
        _add(index, f"{name}-{modality}", modality, 12, seed + number, **transform)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A store with two image teachers, a text teacher and a cross-modal teacher."""
    index = make_store(tmp_path_factory.mktemp("data") / "store")
    _add(index, "eyes", "image", 4, 11)
    _add_cross_teacher(index, "clip")
    return index


@pytest.fixture(scope="module")
def store(index):
    return EmbeddingStore(index)


def _args(index, run_dir, *more):
    rest = ("--batch-size", 16, "--epochs", 2, "--set", "train.log_every=1")
    steps = ("--checkpoint-steps", 2, "--workers", 0)
    return ("--embeddings", index, "--run-dir", run_dir, *ADAPTER, *ENCODERS, *rest, *steps, *more)


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    out = run_ok("train", *_args(index, run_dir, *BOTH))
    assert "rows      image teacher: eyes (made-up-image)" in out
    return run_dir


def test_rows_of_every_teacher_are_of_the_same_pairs(store):
    teachers = Teachers(store, "train", ["eyes", "vision"], "words", "clip")
    batch = teachers.rows([5, 0, 79])
    eyes, vision = batch.image
    assert torch.equal(eyes, torch.from_numpy(store["eyes", "train"][[2, 0, 39]]))
    assert torch.equal(vision, torch.from_numpy(store["vision", "train"][[2, 0, 39]]))
    assert torch.equal(batch.text, torch.from_numpy(store["words", "train"][[5, 0, 79]]))
    [(images, texts)] = batch.cross
    assert torch.equal(images, torch.from_numpy(store["clip-image", "train"][[2, 0, 39]]))
    assert torch.equal(texts, torch.from_numpy(store["clip-text", "train"][[5, 0, 79]]))


def test_beside_rows_of_a_cross_modal_teacher_the_only_uni_modal_teacher_is_the_default(tmp_path):
    index = make_store(tmp_path)
    _add_cross_teacher(index, "clip")
    store = EmbeddingStore(index)
    assert store.pick_teacher("image", None, "--image-teacher") == "vision"
    assert Teachers(store, "train").rows([0]).cross == ()
    assert len(Teachers(store, "train", cross_teacher=()).rows([0]).cross) == 1
    _add_cross_teacher(index, "siglip", seed=30)
    with pytest.raises(StoreError) as caught:
        Teachers(EmbeddingStore(index), "train", cross_teacher=())
    assert caught.value.name == "cross"


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ({"image_teacher": ["vision", "vision"]}, "vision"),
        ({"image_teacher": ["vision", "words"]}, "words"),
        ({"image_teacher": ["vision", ""]}, ""),
        ({"image_teacher": None}, "image"),
        ({"cross_teacher": "clip-image"}, "clip-image"),
        ({"cross_teacher": ["clip", "clip"]}, "clip"),
    ],
)
def test_teachers_that_cannot_be_chosen(store, names, name):
    with pytest.raises(StoreError) as caught:
        Teachers(store, "train", **{"image_teacher": "vision", **names})
    assert caught.value.name == name
    assert caught.value.path == store.path


def test_a_run_names_its_teachers_wherever_it_names_things(whole):
    config, provenance = load_run(whole)
    assert config.data.image_teacher == ("vision", "eyes")
    assert config.data.text_teacher == "words"
    assert [teacher.name for teacher in provenance.teachers.image] == ["vision", "eyes"]
    assert provenance.teacher_names() == {"image": "vision, eyes", "text": "words"}
    card = (whole / "best" / "README.md").read_text()
    assert card.count("| teacher of images |") == 2


def test_killed_and_resumed_a_run_of_two_teachers_is_the_same(index, whole, tmp_path):
    run_dir = tmp_path / "part"
    patch = kill_at(Trainer, "_train_on", 7, signal.SIGKILL, 1)
    done = ForkedCommand("train", *_args(index, run_dir, *BOTH), patch=patch).wait()
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_ok("train", "--resume", "--run-dir", run_dir)
    assert_same_run(whole, run_dir)


def test_a_host_reads_the_cross_modal_teacher_if_its_loss_needs_one(store):
    """From the collated rows to the loss of several teachers."""
    config = LossConfig(rule="dr", terms=("csa",), cross_teacher_taus=(0.02,))
    teachers = SplitTeachers(store, ("train",), ["vision", "eyes"], "words", config=config)
    labels = torch.tensor([[0, 3], [0, 40], [0, 7]])
    batch = teachers.rows(labels)
    features = torch.eye(3)
    terms = CUSALoss(config)(
        features,
        features,
        teacher_image=batch.image,
        teacher_text=batch.text,
        image_ids=batch.image_ids,
        cross_teachers=batch.cross,
    )
    assert len(batch.image) == 2
    assert terms.rule > 0
    without = SplitTeachers(store, ("train",), "vision", "words").rows(labels)
    assert without.cross == ()


def test_a_moved_batch_keeps_the_rows_of_all_teachers():
    rows = (torch.ones(2, 3), torch.ones(2, 4))
    batch = Batch({"x": torch.ones(2)}, torch.ones(2), rows, rows[0], torch.ones(2), (rows,))
    assert len(list(batch.tensors())) == 8
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors()} == {"meta"}
    kept = batch.to(torch.device("meta"), with_inputs=False)
    assert kept.texts.device.type == "cpu"
    assert kept.cross_teachers[0][1].device.type == "meta"


IMAGES_ALONE = ("--set", "loss.soft_label_modalities=[image]")


def test_a_run_with_soft_labels_of_images_alone_reads_no_text_teacher(index, whole, tmp_path):
    run_dir = tmp_path / "run"
    out = run_ok("train", *_args(index, run_dir, *BOTH, *IMAGES_ALONE))
    assert "contrastive, csa, usa (csa and usa with soft labels of images alone)" in out
    config, provenance = load_run(run_dir)
    assert config.data.text_teacher == "words"
    assert provenance.teacher_names() == {"image": "vision, eyes"}
    card = (run_dir / "best" / "README.md").read_text()
    assert "soft labels from uni-modal image teachers" in card
    assert "| soft labels of | images alone |" in card
    first, first_of_both = (next(_train_lines(path)) for path in (run_dir, whole))
    assert 0 < first["csa"] < first_of_both["csa"]
    run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 3)


def _train_lines(run_dir):
    return (line for line in read_metrics(run_dir) if line["kind"] == "train")


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_store_with_teachers_of_one_modality(tmp_path, modality):
    other = {"image": "text", "text": "image"}[modality]
    _add(tmp_path / "store.h5", "only", modality, 8, 0)
    store = EmbeddingStore(tmp_path / "store.h5")
    both = build_config({})
    with pytest.raises(StoreError) as caught:
        used_teachers(both, store)
    assert caught.value.name == other
    alone = build_config({"loss": {"soft_label_modalities": [modality]}})
    assert list(used_teachers(alone, store).by_kind()) == [modality]
    wrong = build_config({"loss": {"soft_label_modalities": [other]}})
    with pytest.raises(StoreError) as caught:
        used_teachers(wrong, store)
    assert caught.value.name == other
    with pytest.raises(StoreError):
        Teachers(store, "train", config=wrong.loss)
    assert getattr(Teachers(store, "train", config=both.loss).rows([0]), other) is None


def test_terms_that_take_other_labels_are_not_said_to_have_those_of_one_modality():
    loss = LossConfig(rule="guide", soft_label_modalities=("image",), soft_label_source="image")
    assert loss.terms_by_modality == ("usa",)
    assert replace(loss, terms=("csa",)).only_modality is None


def test_rows_are_those_that_a_loss_needs(store):
    names = {"image_teacher": "vision", "text_teacher": "words"}
    for settings_, kinds in (
        ({"soft_label_modalities": ("text",)}, (False, True, 0)),
        ({"terms": (), "rule": "dr"}, (False, False, 1)),
        ({"terms": ("contrastive",)}, (False, False, 0)),
        ({"terms": ("usa",), "rule": "dr"}, (True, True, 1)),
    ):
        batch = Teachers(store, "train", **names, config=LossConfig(**settings_)).rows([4, 0])
        assert (batch.image is not None, batch.text is not None, len(batch.cross)) == kinds
        assert batch.image_ids.tolist() == [2, 0]
    with pytest.raises(StoreError) as caught:
        Teachers(store, "train", "nobody", config=LossConfig(terms=("contrastive",)))
    assert caught.value.name == "nobody"


def test_resuming_with_other_teachers_is_refused(index, whole):
    fault = run_fault("train", *_args(index, whole, *ONE, "--resume"))
    assert fault.name == "data.image_teacher"


def test_a_second_teacher_changes_the_loss_and_its_settings_reach_it(index, whole, tmp_path):
    """A second teacher with next to no weight is as good as none."""
    run_ok("train", *_args(index, tmp_path / "one", *ONE))
    weights = ("--set", "loss.image_teacher_weights=[1, 1e-9]")
    run_ok("train", *_args(index, tmp_path / "weighted", *BOTH, *weights))
    losses = {}
    for run_dir in (whole, tmp_path / "one", tmp_path / "weighted"):
        lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
        losses[run_dir.name] = lines[0]["csa"]
    assert losses["weighted"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["whole"] != pytest.approx(losses["one"], rel=1e-3)


def test_a_rule_reads_the_cross_modal_teacher_at_its_own_temperature(index, tmp_path):
    rule = ("--set", "loss.rule=dr", "--set", "loss.terms=[]")
    run_ok("train", *_args(index, tmp_path / "run", *ONE, *rule))
    config, provenance = load_run(tmp_path / "run")
    assert config.data.cross_teacher == "clip"
    assert config.loss.cross_teacher_taus == (pytest.approx(1 / 50),)
    assert provenance.teacher_names() == {"cross": "clip-image, clip-text"}
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "| temperatures of the cross-modal teachers | 0.02 |" in card
    run_ok("train", "--resume", "--run-dir", tmp_path / "run", "--epochs", 3)


@pytest.mark.parametrize("kind", ["image", "text", "cross"])
def test_a_named_teacher_that_the_loss_does_not_need_must_be_there(index, tmp_path, kind):
    options = ("--loss", "contrastive", f"--{kind}-teacher", "nobody")
    fault = run_fault("train", *_args(index, tmp_path / "run", *options))
    assert fault == Fault(StoreError, path=index, name="nobody")


def test_a_named_teacher_that_the_loss_does_not_need_is_not_read(index, tmp_path):
    options = ("--loss", "contrastive", "--cross-teacher", "clip", *ONE)
    run_ok("train", *_args(index, tmp_path / "run", *options))
    config, provenance = load_run(tmp_path / "run")
    assert config.data.cross_teacher == "clip"
    assert not provenance.teachers


def _cross_rows(name, **transform):
    return settings("image", 12, transform={"cross_teacher": name, **transform})


def test_logits_are_those_that_the_store_records_of_each_cross_modal_teacher():
    clip = _cross_rows("clip", logit_scale=50.0)
    siglip = _cross_rows("siglip", logit_scale=20.0, logit_bias=-12.0)
    imported = _cross_rows("imported")
    for rows, taus in (([clip, siglip], (0.02, 0.05)), ([imported, siglip], (0.01, 0.05))):
        loss = with_logits_of(LossConfig(rule="dr"), rows)
        assert loss.cross_teacher_taus == pytest.approx(taus)
    assert with_logits_of(LossConfig(rule="dr"), [imported]).cross_teacher_taus == ()
    sigmoid = LossConfig(rule="dr-sigmoid", terms=())
    assert with_logits_of(sigmoid, [siglip, siglip]).dr_sigmoid.teacher_bias == -12
    for rows in ([clip], [clip, siglip]):
        # -10 would be as good a guess as any: most make every sign 1, or every sign -1.
        with pytest.raises(SettingError) as caught:
            with_logits_of(sigmoid, rows)
        assert caught.value.name == "loss.dr_sigmoid.teacher_bias"
        given = replace(sigmoid, dr_sigmoid=DrSigmoidConfig(teacher_bias=-25))
        assert with_logits_of(given, rows).dr_sigmoid == given.dr_sigmoid


def test_inspect_shows_the_targets_that_a_run_has(index):
    targets = {}
    for taus in ("[]", "[0.02]", "[0.01]"):
        loss = ("--set", "loss.rule=dr", "--set", f"loss.cross_teacher_taus={taus}")
        out = run_ok("store", "inspect", index, *ONE, "--batch-size", 8, "--json", *loss)
        targets[taus] = json.loads(out)["targets"]["dr"]
    assert targets["[]"] == targets["[0.02]"]
    assert targets["[]"] != targets["[0.01]"]


def test_a_grid_has_runs_of_one_teacher_and_of_several(index, tmp_path):
    axis = "image_teacher=vision,vision+eyes"
    args = _args(index, tmp_path / "grid", "--text-teacher", "words", "--epochs", 1)
    run_ok("train", *args, "--sweep", axis)
    names = {load_run(path)[0].data.image_teacher for path in (tmp_path / "grid").glob("image*")}
    assert names == {"vision", ("vision", "eyes")}


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a", "a"),
        (["a"], "a"),
        (["a", "b"], ("a", "b")),
        ("a+b", ("a", "b")),
        (["a+b", "c"], ("a", "b", "c")),
        ([], None),
        ("", None),
        (None, None),
    ],
)
def test_a_setting_takes_a_name_or_several(value, stored):
    assert build_config({"data": {"image_teacher": value}}).data.image_teacher == stored


@pytest.mark.parametrize("value", [1, [1], ["a", None], {"a": 1}, True])
def test_what_is_no_name(value):
    with pytest.raises(SettingError) as caught:
        build_config({"data": {"image_teacher": value}})
    assert caught.value.name.startswith("data.image_teacher")


def test_from_python(index, tmp_path):
    run = cusa.train(
        index,
        student="adapter",
        image_encoder="vision",
        text_encoder="words",
        image_teacher=["vision", "eyes"],
        text_teacher="words",
        epochs=1,
        run_dir=tmp_path / "run",
        settings={"student.hidden_dim": 16, "student.embed_dim": 8},
    )
    assert math.isfinite(run.val["rsum"])
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [teacher["name"] for teacher in facts["teachers"]["image"]] == ["vision", "eyes"]

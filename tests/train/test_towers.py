"""Students of two towers: stored rows beside a trained model, and models of different makers."""

import json
import pickle
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cusa
from cusa.data.errors import WEIGHTS, RunError, SettingError, StoreError, StudentError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.build_student import build_student
from cusa.train.command_settings import Given, nested_settings, new_settings
from cusa.train.config import Config
from cusa.train.encode_split import encode_split
from cusa.train.preset_files import load_preset
from cusa.train.saving.run_dir import load_run
from cusa.train.saving.student_folder import load_saved
from cusa.train.saving.tensors import load_tensors
from cusa.train.sources import student_sources
from cusa.train.student_config import StudentConfig
from cusa.train.towers.dual_encoder import load_dual_encoder
from cusa.train.towers.lora import merge_adapters
from cusa.train.trainer import Trainer
from tests.helpers import (
    Fault,
    ForkedCommand,
    fault_of,
    kill_at,
    make_pairs,
    make_tiny_clip,
    make_tiny_sentence,
    make_tiny_vit,
    run_fault,
    run_ok,
)
from tests.tiny_models import TEXTS, pictures, save_clip, save_text, save_vision
from tests.train.same_runs import assert_same_run

# Image tower and text tower, with the places of models for names in braces.
STUDENTS = {
    "trained-stored": ("hf:{vit}", "stored:words"),
    "stored-trained": ("stored", "st:{words}"),
    "two-models": ("hf:{clip}", "hf:{words}"),
    "two-stored": ("stored:vit", "stored:words"),
}
PACKAGED = {"packaged-stored": ("efficientnet-lite0", "stored:words")}
SIZES = ("--set", "student.hidden_dim=16", "--set", "student.embed_dim=8")
STEPS = ("--epochs", 2, "--batch-size", 6, "--warmup", 0, "--workers", 0, "--checkpoint-steps", 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    makers = {"vit": make_tiny_vit, "words": make_tiny_sentence, "clip": make_tiny_clip}
    return {name: make(folder / name) for name, make in makers.items()}


@pytest.fixture(scope="module")
def store(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    manifest = make_pairs(folder / "data", n=16)
    teachers = [f"{name}={models[name]}" for name in ("vit", "words")]
    teacher_options = ("--teacher", teachers[0], "--teacher", teachers[1])
    run_ok("precompute", "--dataset", manifest, *teacher_options, "--out", folder / "store.h5")
    return folder / "store.h5"


def _towers(models, student):
    image, text = (STUDENTS | PACKAGED)[student]
    names = (f"student.image={image.format(**models)}", f"student.text={text.format(**models)}")
    return ("--set", names[0], "--set", names[1])


def _args(store, models, student, run_dir):
    towers = _towers(models, student)
    log = ("--set", "train.log_every=1")
    return ("--embeddings", store, *towers, *SIZES, *STEPS, *log, "--run-dir", run_dir)


@pytest.fixture(scope="module")
def runs(store, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for student in STUDENTS:
        run_ok("train", *_args(store, models, student, folder / student))
    return folder


@pytest.mark.parametrize("student", [name for name in STUDENTS if name != "two-stored"])
def test_killed_at_a_step_a_resumed_run_equals_an_undisturbed_one(
    store, models, runs, tmp_path, student
):
    patch = kill_at(Trainer, "_train_on", 3)
    args = _args(store, models, student, tmp_path / student)
    assert ForkedCommand("train", *args, patch=patch).wait().returncode == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", tmp_path / student)
    assert_same_run(runs / student, tmp_path / student)


def test_two_stored_towers_are_the_adapter(store, runs, tmp_path):
    args = ("--embeddings", store, "--student", "adapter", *SIZES, *STEPS)
    run_ok("train", *args, "--run-dir", tmp_path / "adapter", "--set", "train.log_every=1")
    assert_same_run(tmp_path / "adapter", runs / "two-stored")


@pytest.mark.parametrize("student", STUDENTS)
def test_new_images_and_texts_get_the_embeddings_of_the_store(store, runs, tmp_path, student):
    """From the best student alone, moved elsewhere; a stored tower's teacher encodes new inputs."""
    shutil.copytree(runs / student / "best", tmp_path / "best")
    loaded = cusa.load_student(tmp_path / "best", device="cpu")
    opened = EmbeddingStore(store)
    saved = load_saved(runs / student)
    encoders = saved.origin.provenance.encoder_names
    sources = student_sources(opened, "val", saved.origin.config, encoders, saved.processors)
    expected = encode_split(saved.student, sources, "cpu")
    split = opened.split("val")
    paths = [opened.image_root / path for path in split.image_paths]
    for head in ("cross", "uni"):
        images = loaded.encode_image(paths, head)
        np.testing.assert_allclose(images, expected.image[head], atol=1e-5)
        texts = loaded.encode_text(list(split.captions), head)
        np.testing.assert_allclose(texts, expected.text[head], atol=1e-5)


@pytest.mark.parametrize(
    ("student", "preset"), [("two-models", "towers"), ("two-stored", "adapter")]
)
def test_a_run_that_begins_with_towers_has_their_preset(store, runs, student, preset):
    beginning = nested_settings([f"student.init={runs / student}"])
    config = new_settings(Given(store, None, None, beginning, {}), {})
    settings_of_preset = load_preset(preset)
    assert config.optim.lr == settings_of_preset["optim"]["lr"]
    assert config.train.epochs == settings_of_preset["train"]["epochs"]


def test_towers_need_no_more_than_they_are_made_of(store, models, tmp_path):
    """Neither pictures beside stored images, nor the models that the run began with."""
    moved = {name: shutil.copytree(path, tmp_path / name) for name, path in models.items()}
    for student in ("stored-trained", "two-models"):
        args = _args(store, moved, student, tmp_path / student)
        if student == "stored-trained":
            args = (*args, "--image-root", tmp_path / "nowhere")
        patch = kill_at(Trainer, "_train_on", 1)
        assert ForkedCommand("train", *args, patch=patch).wait().returncode == -signal.SIGKILL
    for path in moved.values():
        shutil.rmtree(path)
    for student in ("stored-trained", "two-models"):
        run_ok("train", "--resume", "--run-dir", tmp_path / student)


def test_worker_processes_that_are_spawned_read_the_same_inputs(store, runs):
    """They get a pickled copy of the readers, which holds no model."""
    saved = load_saved(runs / "stored-trained")
    encoders = saved.origin.provenance.encoder_names
    config = saved.origin.config
    inputs = student_sources(
        EmbeddingStore(store), "train", config, encoders, saved.processors
    ).inputs
    content = pickle.dumps(inputs.text.tokenization)
    assert len(content) < 20_000
    tokens = pickle.loads(content).tokens(TEXTS)
    expected = inputs.text.tokenization.tokens(TEXTS)
    assert all(torch.equal(tokens[name], expected[name]) for name in expected)


def test_a_run_is_evaluated_and_searched(runs, tmp_path):
    run_dir = shutil.copytree(runs / "trained-stored", tmp_path / "run")
    run_ok("eval", "--run", run_dir, "--split", "val", "--device", "cpu")
    metrics = json.loads((run_dir / "eval" / "metrics.json").read_text())
    assert metrics["model"]["student"] == "vit+stored:words"
    assert metrics["model"]["encoders"] == {"text": "words"}
    pictures_folder = EmbeddingStore(load_run(run_dir)[0].data.embeddings).image_root
    run_ok("eval", "index", pictures_folder, "--run", run_dir, "--device", "cpu")
    assert "000.jpg" in run_ok("eval", "search", "picture number 0", "--index", run_dir / "index")


def _teacher_rows(name, folder):
    from cusa.precompute.teachers import parse_teacher

    teacher = parse_teacher(f"{name}={folder}").load("cpu")
    items = TEXTS if teacher.modality == "text" else pictures()
    return teacher.rows(teacher.inputs(items), "cpu", "fp32")


def _tower(modality, tower):
    stored = {"image": "stored", "text": "stored"}
    config = StudentConfig(**{**stored, modality: tower}, embed_dim=8)
    return getattr(build_student(config, {"image": 4, "text": 4}).towers, modality)


@torch.no_grad()
def _unit_features(tower, modality):
    preparation = tower.preparation
    inputs = preparation.pixels(pictures()) if modality == "image" else preparation.tokens(TEXTS)
    return torch.nn.functional.normalize(tower.trunk.eval()(inputs)).numpy()


VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
VIT |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
BERT |= {"num_attention_heads": 2, "max_position_embeddings": 32}
MAKERS = {
    "vit": lambda folder: save_vision(folder, "ViTModel", "ViTConfig", **VIT),
    "dinov2": lambda folder: save_vision(folder, "Dinov2Model", "Dinov2Config", **VIT),
    "clip": save_clip,
    "bert": lambda folder: save_text(folder, "BertModel", "BertConfig", **BERT),
    "clip-text": lambda folder: save_text(
        folder, "CLIPTextModelWithProjection", "CLIPTextConfig", eos_token_id=2, **BERT
    ),
}


@pytest.mark.parametrize(
    ("modality", "maker", "kind"),
    [
        ("image", "vit", "hf"),
        ("image", "dinov2", "hf"),
        ("image", "clip", "hf"),
        ("text", "bert", "hf"),
        ("text", "bert", "st"),
        ("text", "clip-text", "hf"),
    ],
)
def test_features_are_those_of_the_model_as_a_teacher(tmp_path, modality, maker, kind):
    """And again after they were made from their own folder and given the weights."""
    MAKERS[maker](tmp_path / "model")
    expected = _teacher_rows("model", tmp_path / "model")
    tower = _tower(modality, f"{kind}:{tmp_path / 'model'}")
    np.testing.assert_allclose(_unit_features(tower, modality), expected, atol=1e-6)
    tower.save(tmp_path / "student" / modality)
    shutil.rmtree(tmp_path / "model")
    config = StudentConfig(
        **{"image": "stored", "text": "stored", modality: f"{kind}:anything"}, embed_dim=8
    )
    built = build_student(config, {"image": 4, "text": 4}, tmp_path / "student", pretrained=False)
    again = getattr(built.towers, modality)
    again.trunk.load_state_dict(tower.trunk.state_dict())
    np.testing.assert_allclose(_unit_features(again, modality), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("modality", "name"), [("image", "efficientnet-lite0"), ("text", "minilm")]
)
def test_packaged_models_are_towers(modality, name):
    from cusa.precompute.teachers import parse_teacher

    teacher = parse_teacher(name).load("cpu")
    items = TEXTS if modality == "text" else pictures()
    expected = teacher.rows(teacher.inputs(items), "cpu", "fp32")
    tower = _tower(modality, name)
    np.testing.assert_allclose(_unit_features(tower, modality), expected, atol=1e-5)
    assert all(parameter.requires_grad for parameter in tower.trunk.parameters())


def test_one_side_of_a_dual_encoder_is_held_without_the_other(models):
    image = _tower("image", f"hf:{models['clip']}")
    text = _tower("text", f"hf:{models['clip']}")
    names = {name.split(".")[1] for name, _ in image.trunk.named_parameters()}
    assert names == {"logit_scale", "vision_model", "visual_projection"}
    names = {name.split(".")[1] for name, _ in text.trunk.named_parameters()}
    assert names == {"logit_scale", "text_model", "text_projection"}


def test_towers_of_one_model_are_its_dual_encoder(models):
    both = f"hf:{models['clip']}"
    student, towers = build_student(StudentConfig(image=both, text=both))
    assert towers.backbone is not None
    expected = load_dual_encoder(str(models["clip"]), pretrained=True).model.state_dict()
    weights = student.image_trunk.backbone.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not list(student.text_trunk.parameters())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("student.image=minilm", "student.image"),
        ("student.image=st:a/b", "student.image"),
        ("student.image=stored:", "student.image"),
        ("student.text=efficientnet-lite0", "student.text"),
        ("student.text=hf:", "student.text"),
        ("student.text=[stored]", "student.text"),
        ("student.text=''", "student.text"),
    ],
)
def test_what_is_no_tower_is_refused(store, tmp_path, settings, name):
    args = ("--embeddings", store, "--student", "adapter", "--run-dir", tmp_path / "run")
    assert run_fault("train", *args, "--set", settings) == Fault(SettingError, name=name)
    assert not (tmp_path / "run").exists()


def test_a_teacher_named_twice_must_be_the_same(store, tmp_path):
    args = ("--embeddings", store, "--run-dir", tmp_path / "run", "--text-encoder", "others")
    args = (*args, "--student", "adapter", "--set", "student.text=stored:words")
    assert run_fault("train", *args) == Fault(SettingError, name="student.text_encoder")


def test_a_stored_tower_of_no_teacher_is_refused(store, tmp_path):
    args = ("--embeddings", store, "--student", "adapter", "--run-dir", tmp_path / "run")
    fault = run_fault("train", *args, "--set", "student.image=stored:nobody")
    assert fault == Fault(StoreError, path=store, name="nobody")


def test_another_student_than_that_of_init_is_refused(store, runs, tmp_path):
    begun = runs / "trained-stored"
    args = ("--embeddings", store, "--init", begun, "--run-dir", tmp_path / "run")
    fault = run_fault("train", *args, "--student", "adapter")
    assert fault == Fault(StudentError, path=begun)


def test_models_of_the_other_modality_are_refused(models, tmp_path):
    save_text(tmp_path / "bert", "BertModel", "BertConfig", **BERT)
    others = (("image", tmp_path / "bert", "BertModel"), ("text", models["vit"], "ViTModel"))
    for modality, model, model_class in others:
        with pytest.raises(StudentError) as refused:
            _tower(modality, f"hf:{model}")
        assert refused.value.name == model_class
    with pytest.raises(StudentError) as refused:
        _tower("image", f"hf:{tmp_path / 'nothing'}")
    assert refused.value.name == str(tmp_path / "nothing")


def test_features_of_unlike_dimensions_need_a_common_one(models):
    config = StudentConfig(image=f"hf:{models['vit']}", text="stored", hidden_dim=16)
    with pytest.raises(StudentError) as refused:
        build_student(config, {"text": 4})
    assert fault_of(refused.value) == Fault(StudentError, name="embed_dim")


def test_a_folder_without_a_models_description_is_refused(runs, tmp_path):
    run_dir = shutil.copytree(runs / "two-models", tmp_path / "run")
    (run_dir / "best" / "image" / "config.json").unlink()
    fault = run_fault("train", "--resume", "--run-dir", run_dir, "--epochs", 3)
    assert fault == Fault(RunError, path=run_dir / "best")


def test_a_students_folder_without_a_tower_is_refused(runs, tmp_path, monkeypatch):
    """Whatever the folder is called: no model of that name is looked for on the hub."""
    shutil.copytree(runs / "two-models" / "best", tmp_path / "owner")
    shutil.rmtree(tmp_path / "owner" / "text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudentError) as refused:
        load_saved(Path("owner"))
    assert refused.value.path == Path("owner")


def test_a_tower_without_its_list_of_modules_is_refused(runs, tmp_path):
    """Without one, sentence-transformers would pool in its own way, and so give other features."""
    folder = shutil.copytree(runs / "stored-trained" / "best", tmp_path / "best")
    (folder / "text" / "modules.json").unlink()
    with pytest.raises(StudentError) as refused:
        load_saved(folder)
    assert refused.value.path == folder


def test_a_tower_of_sentence_transformers_is_stored_once(runs):
    """Beside the student's weights, ``best/text`` has none; it is no model by itself."""
    best = runs / "stored-trained" / "best"
    files = [path for path in (best / "text").rglob("*") if path.is_file()]
    assert (best / "text" / "modules.json") in files
    weight_files = [path for path in files if path.suffix == ".safetensors"]
    assert [load_file(path) for path in weight_files] == [{}]
    with pytest.raises(StudentError) as refused:
        _tower("text", f"st:{best / 'text'}")
    assert refused.value.location == WEIGHTS


def test_earlier_folders_with_a_towers_weights_are_read(runs, tmp_path):
    """Those of training are taken, not those beside the model's description."""
    folder = shutil.copytree(runs / "stored-trained" / "best", tmp_path / "best")
    expected = load_saved(folder)
    model = load_saved(folder).towers.text.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save(str(folder / "text"), create_model_card=False)
    again = load_saved(folder).student.state_dict()
    for name, tensor in expected.student.state_dict().items():
        assert torch.equal(again[name], tensor)


def test_a_students_folder_with_an_unknown_pooling_is_refused(runs, tmp_path):
    """Another pooling would give other features."""
    folder = shutil.copytree(runs / "trained-stored" / "best", tmp_path / "best")
    pooling = folder / "image" / "pooling.json"
    assert json.loads(pooling.read_text()) == "pooler"
    pooling.write_text('"all"')
    with pytest.raises(StudentError) as refused:
        load_saved(folder)
    assert refused.value.path == pooling


def test_default_settings_have_the_towers_of_a_dual_encoder():
    student = Config().student
    assert student.dual_encoder == student.name == student.title
    assert not student.stored


TRAINED_IN_PART = {
    "frozen image": ("two-models", ("--freeze", "image")),
    "frozen both": ("two-models", ("--freeze", "image", "--freeze", "text")),
    "adapters": ("two-models", ("--set", "student.lora.towers=[image,text]")),
    "adapters of st": ("stored-trained", ("--set", "student.lora.towers=[text]")),
    "adapters of efficientnet": (
        "packaged-stored",
        ("--set", "student.lora.towers=[image]", "--epochs", 1),
    ),
    "adapters and frozen": (
        "two-models",
        ("--freeze", "text", "--set", "student.lora.towers=[image]"),
    ),
}


@pytest.mark.parametrize("case", TRAINED_IN_PART)
def test_what_is_not_trained_stays_as_it_was_and_runs_resume(store, models, tmp_path, case):
    """A frozen tower and the weights below adapters, bit for bit; with dropout elsewhere."""
    student, options = TRAINED_IN_PART[case]
    args = (*_args(store, models, student, tmp_path / "whole"), *options)
    run_ok("train", *args)
    args = (*_args(store, models, student, tmp_path / "part"), *options)
    patch = kill_at(Trainer, "_train_on", 3)
    assert ForkedCommand("train", *args, patch=patch).wait().returncode == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", tmp_path / "part")
    assert_same_run(tmp_path / "whole", tmp_path / "part")

    saved = load_saved(tmp_path / "whole")
    config = saved.origin.config.student
    pretrained = build_student(config, saved.origin.provenance.row_dims)
    for modality in ("image", "text"):
        before = pretrained.towers.of(modality).trunk.state_dict()
        after = saved.towers.of(modality).trunk.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        if modality in config.freeze:
            assert not changed
        elif modality in config.lora.towers:
            assert changed
            assert all("lora_" in name for name in changed)
        else:
            assert changed


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_of_a_dual_encoder_leaves_the_other_one_trained(models, frozen):
    """Its forward pass has no graph and no dropout; the other one's has both."""
    config = StudentConfig(name=str(models["clip"]), freeze=(frozen,))
    student, towers = build_student(config)
    student.train()
    inputs = {
        "image": towers.image.preparation.pixels(pictures()),
        "text": towers.text.preparation.tokens(TEXTS),
    }
    encode = {"image": student.encode_image, "text": student.encode_text}
    assert not towers.of(frozen).trunk(inputs[frozen]).requires_grad
    assert encode[frozen](inputs[frozen]).cross.requires_grad
    for modality in ("image", "text"):
        encode[modality](inputs[modality]).cross.sum().backward()
        modules = towers.of(modality).trunk.modules_run
        assert modules
        assert {module.training for module in modules} == {modality != frozen}
    names = {"image": "vision_model", "text": "text_model"}
    for modality, name in names.items():
        parameters = getattr(towers.backbone, name).parameters()
        has_gradient = [parameter.grad is not None for parameter in parameters]
        assert any(has_gradient) == (modality != frozen)


def test_batch_norm_of_a_trained_tower_keeps_its_statistics(tmp_path):
    """Only its weights are trained; a picture has the same features in any batch."""
    save_vision(tmp_path, "ResNetModel", "ResNetConfig", **RESNET)
    config = StudentConfig(image=f"hf:{tmp_path}", text="stored:words", embed_dim=8)
    student, towers = build_student(config, {"text": 4})
    pixels = towers.image.preparation.pixels(pictures())
    before = {name: value.clone() for name, value in towers.image.trunk.named_buffers()}
    student.train()
    features = towers.image.trunk(pixels)
    assert before
    assert all(
        torch.equal(before[name], value) for name, value in towers.image.trunk.named_buffers()
    )
    torch.testing.assert_close(towers.image.trunk(pixels[:1]), features[:1])
    features.square().sum().backward()
    norms = [m for m in towers.image.trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.grad is not None for norm in norms)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_adapters_in_one_tower_of_a_dual_encoder(models, modality):
    config = StudentConfig(
        name=str(models["clip"]), lora={"towers": (modality,), "targets": ".*_proj"}
    )
    _, towers = build_student(config)
    names = {"image": "vision_model.", "text": "text_model."}
    for name, parameter in towers.backbone.named_parameters():
        if name.startswith(names[modality]):
            assert parameter.requires_grad == ("lora_" in name), name
        elif name.startswith((*names.values(),)):
            assert parameter.requires_grad, name
            assert "lora_" not in name


def _adapted(image, **settings):
    """A student whose image tower has adapters; its captions are stored."""
    adapters = {"towers": ("image",), **settings}
    config = StudentConfig(image=image, text="stored", embed_dim=8, lora=adapters)
    return build_student(config, {"text": 4})


def _adapted_layers(towers):
    named_modules = towers.image.model.named_modules()
    return [name for name, module in named_modules if hasattr(module, "lora_A")]


def test_beside_adapters_a_tower_of_convolutions_keeps_all_else(tmp_path):
    """Statistics of BatchNorm, too: the model is the pretrained one and its adapters."""
    save_vision(tmp_path, "ResNetModel", "ResNetConfig", **RESNET)
    student, towers = _adapted(f"hf:{tmp_path}", targets=".*convolution")
    trunk = towers.image.trunk
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    student.train()
    optimizer = torch.optim.SGD(trunk.parameters(), 0.1)
    trunk(towers.image.preparation.pixels(pictures())).square().sum().backward()
    optimizer.step()
    after = trunk.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert all("lora_" in name for name in changed)


def test_without_linear_layers_pointwise_convolutions_have_adapters(tmp_path):
    """Of EfficientNet-lite0, 32 of 49 convolutions; the stem and the depthwise ones have none."""
    _, efficientnet = _adapted("efficientnet-lite0")
    adapted = _adapted_layers(efficientnet)
    kinds = [name.rpartition(".")[2] for name in adapted]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "_project_conv": 16,
        "_expand_conv": 15,
        "_conv_head": 1,
    }
    save_vision(tmp_path, "ResNetModel", "ResNetConfig", **RESNET)
    _, resnet = _adapted(f"hf:{tmp_path}")
    assert _adapted_layers(resnet) == ["encoder.stages.1.layers.0.shortcut.convolution"]


def test_merged_adapters_of_efficientnet_give_the_same_features():
    _, towers = _adapted("efficientnet-lite0")
    torch.manual_seed(0)
    for name, parameter in towers.image.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    unmerged = _unit_features(towers.image, "image")
    merge_adapters(towers.image.model)
    pretrained = _tower("image", "efficientnet-lite0")
    assert towers.image.trunk.state_dict().keys() == pretrained.trunk.state_dict().keys()
    np.testing.assert_allclose(_unit_features(towers.image, "image"), unmerged, atol=1e-5)
    assert abs(_unit_features(pretrained, "image") - unmerged).max() > 1e-2


def test_a_model_that_asks_its_convolutions_for_their_stride_has_adapters(tmp_path):
    """MobileNet pads for each convolution by its kernel size, stride and dilation."""
    save_vision(tmp_path, "MobileNetV2Model", "MobileNetV2Config", depth_multiplier=0.25)
    _, towers = _adapted(f"hf:{tmp_path}")
    assert _adapted_layers(towers)
    with_adapters = _unit_features(towers.image, "image")
    merge_adapters(towers.image.model)
    np.testing.assert_allclose(_unit_features(towers.image, "image"), with_adapters, atol=1e-5)


def test_an_export_of_efficientnet_has_its_adapters_in_the_weights(store, models, tmp_path):
    from sentence_transformers import SentenceTransformer

    args = _args(store, models, "packaged-stored", tmp_path / "run")
    run_ok("train", *args, "--set", "student.lora.towers=[image]", "--lr", 1e-2, "--epochs", 1)
    assert "LoRA adapters of rank 8" in (tmp_path / "run" / "best" / "README.md").read_text()
    export = ("--to", "sentence-transformers", "--out", tmp_path / "out")
    run_ok("train", "export", "--run", tmp_path / "run", *export)
    weights, _ = load_tensors(next((tmp_path / "out").rglob("tower.safetensors")))
    assert not [name for name in weights if "lora_" in name]
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    student = cusa.load_student(tmp_path / "run", device="cpu")
    expected = student.encode_image(pictures())
    embeddings = exported.encode(pictures(), show_progress_bar=False)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_exported_adapters_are_in_the_weights(store, models, tmp_path):
    """Whoever loads the export needs no peft."""
    towers = ("--student", models["clip"], "--set", "student.lora.towers=[image,text]")
    args = ("--embeddings", store, *towers, *SIZES, *STEPS, "--run-dir", tmp_path / "run")
    run_ok("train", *args, "--lr", 1e-2)
    run_ok("train", "export", "--run", tmp_path / "run", "--to", "hf", "--out", tmp_path / "hf")
    backbone = load_dual_encoder(str(tmp_path / "hf"), pretrained=True).model
    assert not [name for name, _ in backbone.named_parameters() if "lora_" in name]
    student = cusa.load_student(tmp_path / "run", device="cpu")
    exported = cusa.load_student(tmp_path / "hf", device="cpu")
    np.testing.assert_allclose(
        exported.encode_image(pictures()), student.encode_image(pictures()), atol=1e-5
    )
    np.testing.assert_allclose(exported.encode_text(TEXTS), student.encode_text(TEXTS), atol=1e-5)
    args = ("--embeddings", store, "--init", tmp_path / "run", "--run-dir", tmp_path / "next")
    run_ok("train", *args, *STEPS, "--freeze", "image")
    begun = load_saved(tmp_path / "next").towers.backbone
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(begun.get_parameter(weight), backbone.get_parameter(weight))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (("student.freeze=[image]", "student.image=stored"), "student.freeze"),
        (("student.freeze=[image,image]",), "student.freeze"),
        (("student.freeze=[audio]",), "student.freeze"),
        (("student.lora.towers=[text]", "student.text=stored"), "student.lora.towers"),
        (("student.lora.towers=[text]", "student.freeze=[text]"), "student.lora.towers"),
        (("student.lora.r=0",), "student.lora.r"),
        (("student.lora.targets='('",), "student.lora.targets"),
        (("student.lora.towers=[image]", "student.lora.targets=nothing"), "student.lora.targets"),
        (
            (
                "student.lora.towers=[image]",
                "student.image=efficientnet-lite0",
                "student.lora.targets=.*_depthwise_conv",
            ),
            "student.lora.targets",
        ),
    ],
)
def test_what_cannot_be_trained_so_is_refused(store, models, tmp_path, settings, name):
    args = ("--embeddings", store, "--student", models["clip"], "--run-dir", tmp_path / "run")
    options = [option for setting in settings for option in ("--set", setting)]
    assert run_fault("train", *args, *options) == Fault(SettingError, name=name)
    assert not (tmp_path / "run").exists()


def test_a_layer_that_peft_cannot_adapt_is_refused():
    """The stem of EfficientNet is of a class that pads for one size of pictures."""
    with pytest.raises(StudentError) as refused:
        _adapted("efficientnet-lite0", targets="_conv_stem")
    assert fault_of(refused.value) == Fault(StudentError, name="student.lora.targets")


def test_a_tower_without_layers_for_adapters_is_refused(tmp_path):
    """BiT standardises the weights of its convolutions: what is added to them is lost."""
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 32], "depths": [1, 1], "num_groups": 8}
    save_vision(tmp_path, "BitModel", "BitConfig", **sizes)
    with pytest.raises(SettingError) as refused:
        _adapted(f"hf:{tmp_path}")
    assert fault_of(refused.value) == Fault(SettingError, name="student.lora.towers")


def test_adapters_without_peft_are_refused(store, models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    args = ("--embeddings", store, "--student", models["clip"], "--run-dir", tmp_path / "run")
    fault = run_fault("train", *args, "--set", "student.lora.towers=[image]")
    assert fault == Fault(StudentError, name="peft")


@pytest.mark.parametrize("student", [name for name in STUDENTS if name != "two-stored"])
def test_an_export_to_sentence_transformers_embeds_as_the_student(runs, tmp_path, student):
    """Trained and stored towers; the folder is loaded again, without the run."""
    from sentence_transformers import SentenceTransformer

    run_dir, out = runs / student, tmp_path / "out"
    run_ok("train", "export", "--run", run_dir, "--to", "sentence-transformers", "--out", out)
    assert "(included)" in (out / "README.md").read_text() or student == "two-models"
    # Modules of cusa are imported only so.
    exported = SentenceTransformer(str(out), device="cpu", trust_remote_code=True)
    loaded = cusa.load_student(run_dir, device="cpu")
    images, texts = pictures(), [*TEXTS, "A Dog's (red) ball"]
    for items, expected in (
        (images, loaded.encode_image(images)),
        (texts, loaded.encode_text(texts)),
    ):
        embeddings = exported.encode(items, show_progress_bar=False)
        np.testing.assert_allclose(embeddings, expected, atol=1e-3)  # rows are not rounded


def test_two_models_are_not_exported_to_transformers(runs, tmp_path):
    args = ("export", "--run", runs / "two-models", "--to", "hf", "--out", tmp_path / "out")
    assert run_fault("train", *args) == Fault(StudentError, name="clip+words")
    assert not (tmp_path / "out").exists()

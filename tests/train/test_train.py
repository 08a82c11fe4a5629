"""The command line: runs, resumes, refusals; the adapter on made-up rows, a dual encoder on image
files.
"""

import gc
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from cusa.data.errors import (
    DataError,
    ImageError,
    RunError,
    SettingError,
    StoreError,
    StudentError,
)
from cusa.data.records import Dataset
from cusa.data.store.checksum import ChecksumError, VersionError
from cusa.train.default_preset import default_preset
from cusa.train.saving.student_folder import load_saved
from cusa.train.trainer import Trainer
from tests.helpers import (
    ADAPTER,
    Fault,
    add_teacher,
    make_pairs,
    make_store,
    make_tiny_clip,
    make_tiny_vit,
    records,
    run_failure,
    run_fault,
    run_ok,
    settings,
    unit_rows,
)
from tests.train.pictures import precompute_pictures, student_options


def _adapter(index, run_dir, *more):
    return (
        "--embeddings",
        index,
        "--run-dir",
        run_dir,
        *ADAPTER,
        "--batch-size",
        16,
        "--epochs",
        3,
        *more,
    )


def _metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def index(tmp_path):
    return make_store(tmp_path / "store")


def test_an_adapter_learns(index, tmp_path):
    out = run_ok(
        "train", *_adapter(index, tmp_path / "run", "--epochs", 20, "--set", "train.log_every=1")
    )
    assert "80 pairs of split 'train', 0 left out" in out
    assert "contrastive 1, csa 16, usa 80" in out  # alpha 1 and beta 5, times the batch of 16
    lines = _metrics(tmp_path / "run")
    train = [m for m in lines if m["kind"] == "train"]
    val = [m for m in lines if m["kind"] == "val"]
    assert (len(train), len(val)) == (100, 20)
    for term in ("contrastive", "csa", "usa"):
        assert train[-1][term] < train[0][term]
    assert train[0]["loss"] == pytest.approx(
        sum(train[0][t] for t in ("contrastive", "csa", "usa")), rel=1e-5
    )
    assert val[-1]["rsum"] > 400 > val[0]["rsum"]
    best = max(val, key=lambda m: m["rsum"])
    assert best["best"]
    loaded = load_saved(tmp_path / "run")
    assert loaded.origin.epoch == best["epoch"]
    assert loaded.origin.provenance.encoders["image"].name == "vision"
    features = loaded.student.encode_image(torch.zeros(3, 16))
    assert features.cross.shape == features.uni.shape == (3, 8)


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ("contrastive", ["contrastive"]),
        ("csa", ["contrastive", "csa"]),
        ("usa", ["contrastive", "usa"]),
    ],
)
def test_loss_switches_terms(index, tmp_path, loss, terms):
    run_ok("train", *_adapter(index, tmp_path / "run", "--loss", loss))
    line = _metrics(tmp_path / "run")[0]
    assert [t for t in ("contrastive", "csa", "usa") if t in line] == terms


def test_the_same_seed_gives_the_same_run_and_another_seed_another(index, tmp_path):
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_ok(
            "train", *_adapter(index, tmp_path / name, "--seed", seed, "--set", "train.log_every=1")
        )
        losses.append([m["loss"] for m in _metrics(tmp_path / name) if m["kind"] == "train"])
    assert losses[0] == losses[1] != losses[2]


def test_a_run_leaves_nothing_in_memory(index, tmp_path, monkeypatch):
    """Runs of a grid follow each other in one process, and hold rows and weights."""
    trainers = []
    fit = Trainer.fit

    def fit_and_note(self, *arguments):
        trainers.append(weakref.ref(self))
        fit(self, *arguments)

    monkeypatch.setattr(Trainer, "fit", fit_and_note)
    # While torch loads modules at first use, it keeps the callers of the first run.
    for name in ("first", "second"):
        gc.collect()
        gc.disable()
        try:
            run_ok("train", *_adapter(index, tmp_path / name, "--epochs", 1))
            is_kept = trainers[-1]() is not None
        finally:
            gc.enable()
    assert not is_kept


def test_a_run_goes_on_when_its_store_has_moved_and_gained_a_teacher(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_adapter(index, run_dir))
    assert load_saved(run_dir).origin.config.data.text_teacher == "words"  # resolved, not None
    splits = {"train": records("train", 40), "val": records("val", 10)}
    dataset = Dataset("made-up", index.parent, splits)
    rows = {"train": unit_rows(80, 4, 0), "val": unit_rows(20, 4, 1)}
    add_teacher(index, dataset, "third", settings("text", 4), rows)
    moved = index.parent.rename(tmp_path / "moved") / index.name
    assert run_fault("train", "--resume", "--run-dir", run_dir) == Fault(StoreError, path=index)
    assert "best epoch" in run_ok(
        "train", *_adapter(moved, run_dir, "--resume")
    )  # the first command, and --resume
    assert "best epoch" in run_ok("train", "--resume", "--run-dir", run_dir, "--embeddings", moved)
    assert "best epoch" in run_ok("train", "--resume", "--run-dir", run_dir)


def test_a_preset_lies_under_a_config_file(index, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("student: {name: adapter, embed_dim: 8}\nloss: {alpha: 0.3}\n")
    args = ("--embeddings", index, "--config", path, "--batch-size", 16, "--epochs", 1)
    run_ok("train", *args, "--run-dir", tmp_path / "run")
    config = load_saved(tmp_path / "run").origin.config
    assert (config.loss.alpha, config.optim.lr) == (0.3, 1e-3)  # the adapter preset's learning rate
    assert run_fault(
        "train", "--resume", "--run-dir", tmp_path / "run", "--preset", "demo"
    ) == Fault(SettingError, name="preset")
    run_ok("train", "--config", tmp_path / "run" / "config.yaml", "--run-dir", tmp_path / "again")
    assert load_saved(tmp_path / "again").origin.config == config


def test_resume_refuses_other_settings_and_other_stores(index, tmp_path):
    run_dir = tmp_path / "run"
    run_ok("train", *_adapter(index, run_dir))
    assert run_fault("train", *_adapter(index, run_dir)) == Fault(RunError, path=run_dir)
    assert run_fault("train", *_adapter(index, index)) == Fault(RunError, path=index)
    assert run_fault(
        "train", *_adapter(index, run_dir, "--resume", "--set", "loss.alpha=0.2")
    ) == Fault(SettingError, name="loss.alpha")
    changed = {
        "--seed": (4, "train.seed"),
        "--lr": (0.5, "optim.lr"),
        "--weight-decay": (0.5, "optim.weight_decay"),
        "--warmup": (2, "optim.warmup_epochs"),
    }
    for option, (value, name) in changed.items():
        assert run_fault("train", "--resume", "--run-dir", run_dir, option, value) == Fault(
            SettingError, name=name
        )
    clip = make_tiny_clip(tmp_path / "clip")
    assert run_fault("train", "--resume", "--run-dir", run_dir, "--student", clip) == Fault(
        SettingError, name="student.name"
    )
    for f in index.parent.rglob("*.h5"):
        f.unlink()
    make_store(index.parent, sizes={"train": 40, "val": 12})
    assert run_fault("train", "--resume", "--run-dir", run_dir) == Fault(StoreError, path=index)
    assert run_fault("train", "--resume", "--run-dir", tmp_path / "nope") == Fault(
        RunError, path=tmp_path / "nope"
    )
    assert run_fault("train", "--resume") == Fault(SettingError, name="run_dir")


def test_skipped_rows_leave_their_pairs_out(index, tmp_path):
    splits = {"train": records("train", 40), "val": records("val", 10)}
    dataset = Dataset("made-up", tmp_path, splits)
    rows = {"train": unit_rows(40, 4, 0), "val": unit_rows(10, 4, 1)}
    add_teacher(index, dataset, "holes", settings("image", 4), rows, skipped=[3])
    teachers = ("--image-encoder", "vision", "--image-teacher", "holes")
    assert "78 pairs of split 'train', 2 left out" in run_ok(
        "train", *_adapter(index, tmp_path / "a", *teachers)
    )
    teachers = ("--image-encoder", "holes", "--image-teacher", "vision")
    assert "2 left out" in run_ok("train", *_adapter(index, tmp_path / "b", *teachers))


def test_fewer_pairs_than_a_batch_are_one_step(index, tmp_path):
    """80 pairs: batches of 81 or a million, or four accumulated ones of 32, are the batch of 80."""
    logged = {}
    for name, size in {
        "all": (80,),
        "more": (81,),
        "million": (1_000_000,),
        "accumulated": (32, "--accumulate", 4),
    }.items():
        more = ("--batch-size", *size, "--set", "train.log_every=1", "--set", "student.dropout=0")
        out = run_ok("train", *_adapter(index, tmp_path / name, *more))
        assert (
            "80 pairs can be trained on, fewer than a step asks for: each takes all of them" in out
        ) == (name != "all")
        assert "3 epochs of 1 step, " in out
        assert "at batch 80" in out
        assert "| batch size | 80 |" in (tmp_path / name / "best" / "README.md").read_text()
        logged[name] = [m["loss"] for m in _metrics(tmp_path / name) if m["kind"] == "train"]
    assert logged["all"] == logged["more"] == logged["million"]
    assert logged["accumulated"] == pytest.approx(logged["all"], rel=1e-4)
    assert "best epoch" in run_ok("train", "--resume", "--run-dir", tmp_path / "more")
    one = make_store(tmp_path / "one", sizes={"train": 1, "val": 2})
    assert "2 pairs can be trained on" in run_ok("train", *_adapter(one, tmp_path / "two"))


def test_bad_command_lines(index, tmp_path):
    def error(*more, store=index):
        return run_fault("train", *_adapter(store, tmp_path / "run", *more))

    assert error("--image-teacher", "x") == Fault(StoreError, path=index, name="x")
    assert error("--text-encoder", "vision") == Fault(StoreError, path=index, name="vision")
    assert error("--preset", "x") == Fault(SettingError, name="preset")
    assert error("--set", "loss.x=1") == Fault(SettingError, name="loss.x")
    assert error("--set", "data.val_split=x") == Fault(StoreError, path=index, name="x")
    assert error("--batch-size", 1) == Fault(SettingError, name="train.batch_size")
    assert error("seed=1") == Fault(SettingError)
    assert error(store=tmp_path / "no.h5") == Fault(StoreError, path=tmp_path / "no.h5")
    if not torch.cuda.is_available():
        assert error("--device", "cuda") == Fault(SettingError, name="device")
    assert run_fault("train", "--run-dir", tmp_path / "run") == Fault(
        SettingError, name="data.embeddings"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert error("--student", "some/model") == Fault(StudentError, name="some/model")
    assert run_fault(
        "train",
        "--embeddings",
        index,
        "--student",
        tmp_path / "no-model",
        "--run-dir",
        tmp_path / "r",
    ) == Fault(StudentError, name=str(tmp_path / "no-model"))
    assert not (tmp_path / "run").exists()


def test_unusable_stores(index, tmp_path):
    only_images = tmp_path / "images" / "store.h5"
    dataset = Dataset(
        "made-up", tmp_path, {s: records(s, n) for s, n in (("train", 40), ("val", 10))}
    )
    rows = {"train": unit_rows(40, 4, 0), "val": unit_rows(10, 4, 1)}
    add_teacher(only_images, dataset, "vision", settings("image", 4), rows)
    assert run_fault("train", *_adapter(only_images, tmp_path / "run")) == Fault(
        StoreError, path=only_images, name="text"
    )
    content = index.read_bytes()
    index.write_bytes(content[:3000])
    assert run_fault("train", *_adapter(index, tmp_path / "run")) == Fault(
        ChecksumError, path=index
    )
    index.write_bytes(content.replace(b" 2.1 sha256=", b" 9.1 sha256="))
    assert run_fault("train", *_adapter(index, tmp_path / "run")) == Fault(VersionError, path=index)
    index.write_bytes(content)
    next(index.parent.glob("store/words/val-*.h5")).unlink()
    assert run_fault("train", *_adapter(index, tmp_path / "run")) == Fault(
        StoreError, path=tmp_path / "store/store/words/val-000000014-000000020.h5"
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Image files, a store of two teachers, and a CLIP folder."""
    folder = tmp_path_factory.mktemp("pairs")
    manifest = make_pairs(folder / "data", n=16)
    vit, clip = make_tiny_vit(folder / "vit"), make_tiny_clip(folder / "clip")
    store = folder / "store.h5"
    precompute_pictures(manifest, vit, store)
    return folder, store, clip


def test_images_that_have_moved_are_named_with_the_way_to_them(tmp_path):
    """Before anything is trained: the folder is gone, or is there without its pictures."""
    manifest = make_pairs(tmp_path / "data", n=8, n_val=2)
    clip, store, run_dir = (
        make_tiny_clip(tmp_path / "clip"),
        tmp_path / "store.h5",
        tmp_path / "run",
    )
    precompute_pictures(manifest, clip, store)
    args = student_options(store, clip, run_dir, epochs=1, batch_size=4)
    args = (*args, "--workers", 0)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert run_fault("train", *args) == Fault(DataError, path=tmp_path / "data")
    (tmp_path / "data").mkdir()
    assert run_fault("train", *args) == Fault(ImageError, path=tmp_path / "data/000.jpg")
    assert run_fault("train", *args, "--image-root", store) == Fault(DataError, path=store)
    assert not run_dir.exists()
    run_ok("train", *args, "--image-root", tmp_path / "moved")
    run_ok("train", "--resume", "--run-dir", run_dir, "--epochs", 2)  # it remembers where they are
    adapter = (
        "--student",
        "adapter",
        "--run-dir",
        tmp_path / "rows",
        "--epochs",
        1,
        "--batch-size",
        4,
    )
    run_ok("train", "--embeddings", store, *adapter)  # which reads no picture


def test_a_store_that_is_being_written_is_no_store_yet(index, tmp_path):
    """Its index comes last; and a teacher whose rows of a split are not there yet is named."""
    content = index.read_bytes()
    index.unlink()
    assert run_fault("train", *_adapter(index, tmp_path / "run")) == Fault(StoreError, path=index)
    index.write_bytes(content)
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 40)})
    add_teacher(index, dataset, "late", settings("image", 4), {"train": unit_rows(40, 4, 0)})
    late = ("--image-encoder", "late", "--image-teacher", "vision")
    assert run_fault("train", *_adapter(index, tmp_path / "run", *late)) == Fault(
        StoreError, path=index, name="late"
    )
    assert not (tmp_path / "run").exists()
    run_ok(
        "train",
        *_adapter(index, tmp_path / "run", "--image-teacher", "late", "--image-encoder", "vision"),
    )


def test_a_student_that_memory_does_not_hold_is_one_line(index, tmp_path, monkeypatch):
    def full(*_args, **_settings):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr("cusa.train.assemble.build_student", full)
    assert run_fault("train", *_adapter(index, tmp_path / "run")) == Fault(
        SettingError, name="student.hidden_dim"
    )
    monkeypatch.undo()
    monkeypatch.setattr("cusa.train.training_state.TrainingState.descend", full)
    assert run_fault("train", *_adapter(index, tmp_path / "run")) == Fault(
        SettingError, name="train.batch_size"
    )


def test_settings_of_one_source_do_not_hide_faults_of_another(index, tmp_path):
    path = tmp_path / "c.yaml"
    given = ("--embeddings", index, "--student", "adapter")
    for content, flags in {
        "student: 3": given,
        "data: [1]": given,
        "student: {name: [1]}": given[:2],
        "data: {embeddings: {a: 1}}": given[2:],
    }.items():
        path.write_text(content)
        error = run_failure("train", *flags, "--config", path, "--run-dir", tmp_path / "run")
        assert isinstance(error, SettingError)
        assert error.name.startswith(content.partition(":")[0])
    assert run_fault(
        "train", *_adapter(index, tmp_path / "run", "--set", "loss=1", "--loss", "csa")
    ) == Fault(SettingError, name="loss")
    assert run_fault("train", "--set", "data.embeddings=3", "--run-dir", tmp_path / "run") == Fault(
        SettingError, name="data.embeddings"
    )


@pytest.mark.parametrize(
    "more",
    [(), ("--precision", "bf16"), ("--precision", "fp16"), ("--workers", 2)],
    ids=["fp32", "bf16", "fp16", "workers"],
)
def test_a_hugging_face_dual_encoder_trains_from_image_files(pairs, tmp_path, more):
    _, store, clip = pairs
    run_dir = tmp_path / "run"
    args = student_options(store, clip, run_dir, epochs=2, batch_size=6)
    run_ok("train", *args, "--set", "optim.lr=1e-3", "--set", "train.log_every=1", *more)
    train = [m for m in _metrics(run_dir) if m["kind"] == "train"]
    assert len(train) == 8
    assert all(np.isfinite(m["loss"]) for m in train)
    loaded = load_saved(run_dir)
    assert loaded.student.image_heads["cross"][1].weight.shape == (24, 24)
    changed = loaded.student.image_trunk.backbone.visual_projection.weight
    from transformers import CLIPModel

    assert not torch.equal(changed, CLIPModel.from_pretrained(clip).visual_projection.weight)
    out = run_ok("eval", "--run", run_dir, "--split", "val")
    assert "RSUM" in out


def test_micro_batches_compute_the_loss_of_the_whole_batch(pairs, tmp_path):
    _, store, clip = pairs
    losses = {}
    for name, more in {"whole": (), "micro": ("--micro-batch", 2)}.items():
        args = student_options(store, clip, tmp_path / name, epochs=2, batch_size=6)
        run_ok("train", *args, "--set", "optim.lr=1e-3", "--set", "train.log_every=1", *more)
        losses[name] = [m["loss"] for m in _metrics(tmp_path / name) if m["kind"] == "train"]
    assert losses["micro"] == pytest.approx(losses["whole"], rel=1e-4)
    assert losses["whole"][-1] != pytest.approx(losses["whole"][0], rel=1e-2)


def test_a_dual_encoder_resumes_without_its_original_folder(pairs, tmp_path):
    _, store, clip = pairs
    moved = tmp_path / "clip"
    from shutil import copytree, rmtree

    copytree(clip, moved)
    run_dir = tmp_path / "run"
    args = student_options(store, moved, run_dir, epochs=2, batch_size=6)
    run_ok("train", *args)
    rmtree(moved)
    assert "best epoch" in run_ok("train", "--resume", "--run-dir", run_dir)


def test_unusable_students_are_refused(pairs, tmp_path):
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    _, store, clip = pairs

    def error(folder):
        return run_fault(
            "train", "--embeddings", store, "--student", folder, "--run-dir", tmp_path / "run"
        )

    tower = make_tiny_vit(tmp_path / "tower")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tower / name).write_bytes((clip / name).read_bytes())
    assert error(tower) == Fault(StudentError, name=str(tower))
    broken = copytree(clip, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("text_model")}
    save_file(kept, broken / "model.safetensors", {"format": "pt"})
    assert error(broken) == Fault(StudentError, name=str(broken))
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert error(broken) == Fault(StudentError, path=broken, name=str(broken))
    (broken / "tokenizer.json").unlink()
    assert error(broken) == Fault(StudentError, path=broken, name=str(broken))


def test_a_preset_is_chosen_by_data_set_and_student():
    assert default_preset("coco", None) == "paper-coco-vit-b32"
    assert (
        default_preset("flickr30k", "openai/clip-vit-large-patch14-336")
        == "paper-flickr-vit-l14-336"
    )
    assert default_preset("mine", "models/some-clip") == "paper-coco-vit-b32"
    assert (default_preset("demo", None), default_preset("demo", "a/b")) == (
        "demo",
        "paper-coco-vit-b32",
    )
    assert (default_preset("coco", "adapter"), default_preset("demo", "adapter")) == (
        "adapter",
        "demo",
    )


@pytest.mark.parametrize("kind", ["half", "siglip"])
def test_other_dual_encoders(pairs, tmp_path, kind):
    """Half-precision checkpoints train in float32; SigLIP has other names, padded texts and no
    projection.
    """
    from transformers import CLIPModel, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    store = pairs[1]
    folder = make_tiny_clip(tmp_path / "model")
    if kind == "half":
        CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    else:
        size = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        text = {**size, "vocab_size": 60, "max_position_embeddings": 16, "projection_size": 32}
        vision = {**size, "image_size": 32, "patch_size": 16}
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    args = student_options(store, folder, tmp_path / "run", epochs=1, batch_size=6)
    run_ok("train", *args)
    assert {p.dtype for p in load_saved(tmp_path / "run").student.parameters()} == {torch.float32}


@pytest.mark.parametrize("loss", ["contrastive", "cusa"])
def test_what_precompute_skipped_is_never_read(pairs, tmp_path, loss):
    """A damaged image in train and one in val; an empty caption: trained, validated and evaluated
    without them.
    """
    folder, _, clip = pairs
    manifest = make_pairs(tmp_path / "data", n=16)
    manifest.write_text(manifest.read_text().replace("picture number 4, version 1", "..."))
    for name in ("001.jpg", "013.jpg"):
        (tmp_path / "data" / name).write_bytes(b"")
    store = tmp_path / "store.h5"
    precompute_pictures(manifest, folder / "vit", store, "--on-error", "skip")
    args = student_options(store, clip, tmp_path / "run", epochs=1, batch_size=6)
    assert "21 pairs of split 'train', 3 left out" in run_ok("train", *args, "--loss", loss)
    out = run_ok("eval", "--run", tmp_path / "run", "--split", "val")
    assert "val: 3 images, 8 captions (1 and 0 were skipped)" in out
    metrics = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    assert (metrics["n_images"], metrics["n_images_skipped"]) == (3, 1)


def test_an_image_that_vanished_is_named(pairs, tmp_path):
    folder, store, clip = pairs
    args = (
        "--embeddings",
        store,
        "--student",
        clip,
        "--run-dir",
        tmp_path / "run",
        "--batch-size",
        6,
    )
    image = folder / "data" / "001.jpg"
    content = image.read_bytes()
    image.unlink()
    try:
        for workers in (0, 1):
            assert run_fault(
                "train", *args, "--workers", workers, "--run-dir", tmp_path / f"run{workers}"
            ) == Fault(ImageError, image)
    finally:
        image.write_bytes(content)


def test_the_training_process_loads_no_teacher(pairs, tmp_path):
    """In a fresh process, for both students; of the evaluation, it loads exact ranks alone."""
    _, store, clip = pairs
    code = "import sys\nfrom cusa.cli.train import main\n"
    for student, more in (("adapter", ["--set", "student.embed_dim=8"]), (str(clip), [])):
        args = ["--embeddings", store, "--student", student, "--run-dir", tmp_path / student[-4:]]
        args = [str(a) for a in [*args, *more, "--epochs", 1, "--batch-size", 6]]
        code += f"main({args!r}, standalone_mode=False)\n"
    code += (
        "teachers = ('sentence_transformers', 'efficientnet', 'cusa.precompute', 'cusa.eval')\n"
        "loaded = [m for m in sys.modules if m.startswith(teachers)]\n"
        "loaded = [m for m in loaded if not m.startswith('cusa.eval.metrics')]\n"
        "loaded = [m for m in loaded if m != 'cusa.eval']\n"
        "assert 'cusa.train.trainer' in sys.modules\nprint('LOADED', loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout

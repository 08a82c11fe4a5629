"""CSA and USA in open_clip's own trainer, and its parts in a training loop of one's own."""

import csv
import importlib.util
import json
import logging
import os
import random
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from click.testing import CliRunner
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from transformers.utils import is_torchvision_available

import cusa
from cusa.data.errors import CusaError, DataError, RunError, SettingError, StoreError
from cusa.data.records import Dataset
from cusa.data.store.reader import EmbeddingStore
from cusa.hosts.open_clip import (
    LabelledTokens,
    SoftLabelLoss,
    add_soft_labels,
    labelled_tokens,
)
from cusa.hosts.open_clip.__main__ import main as command
from cusa.hosts.pairs import SplitTeachers
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from tests.helpers import add_teacher, records, settings, unit_rows

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("open_clip_train") is None,
        reason="needs open_clip's trainer: see the Makefile",
    ),
    # Loaders pin memory, also where there is no GPU; and open_clip gathers as torch once did.
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
    pytest.mark.filterwarnings("ignore:torch.distributed.nn:FutureWarning"),
]
EXAMPLES = Path(cusa.__file__).parent.parent / "docs" / "examples"
STAND_IN = Path(__file__).parent / "stand_in"
TINY_MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 8, "head_width": 4, "patch_size": 16},
    "text_cfg": {"context_length": 16, "width": 8, "heads": 2, "layers": 1},
}
TEMPERATURES = ("tau_csa", "tau_usa_image", "tau_usa_text")


@pytest.fixture(scope="module")
def trainer():
    """The host's trainer; where there is no torchvision, the stand-in is there for its import."""
    if is_torchvision_available():  # transformers remembers the answer
        from cusa.hosts.open_clip import trainer

        return trainer
    sys.path.insert(0, str(STAND_IN))
    try:
        from cusa.hosts.open_clip import trainer
    finally:
        sys.path.remove(str(STAND_IN))
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    return trainer


@contextmanager
def _logging_as_before():
    """open_clip adds handlers to the root logger, and sets the level of all loggers."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in list(root.manager.loggerDict)}
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers, root.level = handlers, level
        for name in list(root.manager.loggerDict):
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, tables of its pairs in another order, and a model's configuration."""
    folder = tmp_path_factory.mktemp("open_clip")
    spec = importlib.util.spec_from_file_location("made_up", EXAMPLES / "made_up.py")
    made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    store = made_up.make_data(folder, n_images=20, n_val=4).store
    for name in ("train", "val"):
        split = store.split(name)
        pairs = []
        for caption, image_row in zip(split.captions, split.caption_image.tolist(), strict=True):
            pairs.append((folder / split.image_paths[image_row], caption))
        random.Random(0).shuffle(pairs)
        _write_table(folder / f"{name}.tsv", pairs)
    (folder / "tiny").mkdir()
    (folder / "tiny" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL}))
    return folder


def _write_table(path, pairs, header=("filepath", "title")):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *pairs])


def _arguments(folder, logs, *others):
    values = {
        "train-data": folder / "train.tsv",
        "model": f"local-dir:{folder / 'tiny'}",
        "logs": logs,
        "name": "run",
        "batch-size": 16,
        "epochs": 1,
        "lr": 1e-2,
        "lr-scheduler": "const",
        "warmup": 0,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    arguments = []
    for name, value in values.items():
        arguments += [f"--{name}", str(value)]
    return [*arguments, *map(str, others)]


def _train(trainer, folder, logs, *others, settings=()):
    """Run open_clip's trainer; its last checkpoint."""
    with _logging_as_before():
        trainer.train(folder / "store.h5", _arguments(folder, logs, *others), settings)
    checkpoints = sorted((logs / "run" / "checkpoints").glob("*.pt"))
    return torch.load(checkpoints[-1])


@pytest.fixture(scope="module")
def whole(trainer, folder, tmp_path_factory):
    logs = tmp_path_factory.mktemp("whole")
    val = ("--val-data", folder / "val.tsv")
    return logs, _train(trainer, folder, logs, *val, "--epochs", 2)


def _assert_equal(value, other):
    torch.testing.assert_close(value, other, rtol=0, atol=0)


def test_a_resumed_run_is_the_whole_one(trainer, folder, whole, tmp_path):
    whole_logs, checkpoint = whole
    val = ("--val-data", folder / "val.tsv")
    _train(trainer, folder, tmp_path, *val)
    resumed = _train(trainer, folder, tmp_path, *val, "--epochs", 2, "--resume", "latest")
    assert resumed["epoch"] == 2
    _assert_equal(resumed["state_dict"], checkpoint["state_dict"])
    _assert_equal(resumed["optimizer"]["state"], checkpoint["optimizer"]["state"])
    results = "run/checkpoints/results.jsonl"
    assert (tmp_path / results).read_text() == (whole_logs / results).read_text()
    assert len((tmp_path / results).read_text().splitlines()) == 2


def test_heads_and_temperatures_are_trained_and_saved(whole):
    _, checkpoint = whole
    state = checkpoint["state_dict"]
    start = CUSALoss().state_dict()
    for name in TEMPERATURES:
        assert state[f"soft_labels.cusa.{name}"] != start[name]
    assert state["soft_labels.uni_heads.image.0.bias"].any()
    no_decay, decay = checkpoint["optimizer"]["param_groups"]
    assert no_decay["weight_decay"] == 0
    # Matrices alone are decayed: no temperature is.
    parameters = [value for name, value in state.items() if "tau_soft" not in name]
    assert len(decay["params"]) == sum(value.ndim > 1 for value in parameters)
    assert len(no_decay["params"]) == sum(value.ndim < 2 for value in parameters)


def test_plain_open_clip_loads_an_export(trainer, folder, whole, tmp_path):
    import open_clip

    logs, checkpoint = whole
    path = tmp_path / "plain.safetensors"
    trainer.export_weights(logs / "run" / "checkpoints" / "epoch_2.pt", path)
    model = open_clip.create_model(f"local-dir:{folder / 'tiny'}")
    open_clip.load_checkpoint(model, str(path))
    add_soft_labels(model).load_state_dict(
        {
            name.removeprefix("soft_labels."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("soft_labels.")
        }
    )
    _assert_equal(dict(model.state_dict()), dict(checkpoint["state_dict"]))
    with pytest.raises(RunError):
        trainer.export_weights(path, tmp_path / "again.safetensors")
    with pytest.raises(SettingError):
        trainer.export_weights(path, tmp_path / "plain.pt")


def test_accumulated_batches_have_the_gradient_of_the_whole_batch(trainer, folder, tmp_path):
    """After one step, AdamW's first moment is the gradient times a constant."""
    at_once = _train(trainer, folder, tmp_path / "1", "--batch-size", 32)
    accumulated = _train(trainer, folder, tmp_path / "2", "--accum-freq", 2)
    moments = []
    for checkpoint in (at_once, accumulated):
        states = checkpoint["optimizer"]["state"].values()
        assert {state["step"].item() for state in states} == {1}
        moments.append([state["exp_avg"] for state in states])
    logit_scale = 0
    for number, (gradient, other) in enumerate(zip(*moments, strict=True)):
        if torch.allclose(2 * gradient, other, rtol=1e-4, atol=0):
            logit_scale += 1  # open_clip adds up its gradient of each batch, which is the whole
            continue
        torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-6, msg=str(number))
    assert logit_scale == 1


@pytest.fixture
def tiny_clip(trainer):
    import open_clip

    torch.manual_seed(0)
    return open_clip.CLIP(
        TINY_MODEL["embed_dim"], TINY_MODEL["vision_cfg"], TINY_MODEL["text_cfg"], output_dict=True
    )


def _labelled_batch(folder, n, split="train", splits=("train", "val")):
    """Pairs as the loader has them, and the teachers' rows."""
    teachers = SplitTeachers(EmbeddingStore(folder / "store.h5"), splits)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 99, (n, 16), generator=generator)
    caption_rows = torch.randperm(8, generator=generator)[:n]
    labelled = LabelledTokens(TensorDataset(images, tokens), caption_rows, teachers, split)
    texts = torch.stack([labelled[number][1] for number in range(n)])
    return teachers, images, tokens, caption_rows, texts


@pytest.mark.parametrize("scaling", ["paper", "infonce"])
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_open_clips_loss_stays_and_soft_labels_weigh_as_in_the_paper(
    tiny_clip, folder, name, scaling
):
    import open_clip.loss

    config = LossConfig(contrastive_scaling=scaling, csa_divergence="cross_entropy", alpha=0.3)
    open_clip_loss = getattr(open_clip.loss, name)()
    teachers, images, tokens, caption_rows, texts = _labelled_batch(folder, 7)
    loss = SoftLabelLoss(open_clip_loss, add_soft_labels(tiny_clip, config), teachers)
    outputs = tiny_clip(images, texts)
    losses = loss(**outputs, logit_bias=torch.tensor(-3.0), output_dict=True)
    assert loss(**outputs, logit_bias=torch.tensor(-3.0)).item() == pytest.approx(
        sum(losses.values()).item()
    )

    plain = tiny_clip(images, tokens)
    assert plain.keys() == {"image_features", "text_features", "logit_scale"}
    contrastive = open_clip_loss(**plain, logit_bias=torch.tensor(-3.0))
    assert losses["contrastive_loss"].item() == contrastive.item()
    batch = teachers.of_split["train"].rows(caption_rows)
    want = CUSALoss(config)(
        plain["image_features"],
        plain["text_features"],
        outputs["uni_image_features"],
        outputs["uni_text_features"],
        batch.image,
        batch.text,
    )
    # Beside a contrastive term that is not divided by the batch's size.
    scale = {"paper": 7, "infonce": 1}[scaling]
    for term in ("csa", "usa"):
        assert losses[f"{term}_loss"].item() == pytest.approx(
            scale * getattr(want, term).item(), rel=1e-5
        )


def _gradients(model, loss, images, texts):
    outputs = model(images, texts)
    losses = loss(**outputs, output_dict=True)
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_gradient_is_that_of_the_sum(tiny_clip, folder):
    from open_clip import ClipLoss

    teachers, images, _, caption_rows, texts = _labelled_batch(folder, 6)
    soft_labels = add_soft_labels(tiny_clip)
    got = _gradients(tiny_clip, SoftLabelLoss(ClipLoss(), soft_labels, teachers), images, texts)
    tiny_clip.zero_grad()

    outputs = tiny_clip(images, texts)
    image, text = outputs["image_features"], outputs["text_features"]
    batch = teachers.of_split["train"].rows(caption_rows)
    terms = soft_labels.cusa(
        image,
        text,
        outputs["uni_image_features"],
        outputs["uni_text_features"],
        batch.image,
        batch.text,
    )
    (ClipLoss()(image, text, outputs["logit_scale"]) + 6 * terms.total).backward()
    for name, parameter in tiny_clip.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_head_without_soft_labels_has_the_gradient_that_ddp_asks_for(tiny_clip, folder):
    from open_clip import ClipLoss

    soft_labels = add_soft_labels(tiny_clip, {"soft_label_modalities": ("image",)})
    teachers, images, _, _, texts = _labelled_batch(folder, 4)
    got = _gradients(tiny_clip, SoftLabelLoss(ClipLoss(), soft_labels, teachers), images, texts)
    assert [name for name, gradient in got.items() if gradient is None] == []
    assert not got["soft_labels.uni_heads.text.1.weight"].any()


def _rank(rank, model, folder, results):
    torch.set_num_threads(1)
    from open_clip import ClipLoss

    dist.init_process_group(
        "gloo", init_method=f"file://{results / 'group'}", rank=rank, world_size=2
    )
    teachers, images, _, _, texts = _labelled_batch(folder, 8)
    clip_loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=2)
    loss = SoftLabelLoss(clip_loss, model.soft_labels, teachers)
    rows = slice(4 * rank, 4 * rank + 4)
    gradients = _gradients(DistributedDataParallel(model), loss, images[rows], texts[rows])
    torch.save(gradients, results / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # see tests/train/loss/test_gather.py


def test_two_processes_have_the_gradient_of_one(tiny_clip, folder, tmp_path):
    from open_clip import ClipLoss

    soft_labels = add_soft_labels(tiny_clip)
    mp.start_processes(_rank, (tiny_clip, folder, tmp_path), nprocs=2, start_method="fork")
    teachers, images, _, _, texts = _labelled_batch(folder, 8)
    want = _gradients(tiny_clip, SoftLabelLoss(ClipLoss(), soft_labels, teachers), images, texts)
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        assert len(gradients) == len(want)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, want[name.removeprefix("module.")], rtol=1e-4, atol=1e-6, msg=name
            )


def test_each_split_has_rows_of_its_own(tiny_clip, folder):
    from open_clip import ClipLoss

    teachers, images, tokens, caption_rows, texts = _labelled_batch(folder, 5, "val")
    loss = SoftLabelLoss(ClipLoss(), add_soft_labels(tiny_clip), teachers)
    outputs = tiny_clip(images, texts)
    assert outputs["pair_labels"].tolist() == [[1, row] for row in caption_rows.tolist()]
    val_rows = teachers.of_split["val"].rows(caption_rows)
    assert torch.equal(teachers.rows(outputs["pair_labels"]).text, val_rows.text)
    loss(**outputs)
    mixed = outputs["pair_labels"].clone()
    mixed[0, 0] = 0
    with pytest.raises(DataError) as caught:
        loss(**{**outputs, "pair_labels": mixed})
    assert caught.value.name == "split"
    with pytest.raises(DataError) as caught:
        loss(**tiny_clip(images, tokens))
    assert caught.value.name == "pair_labels"


def test_pairs_that_a_teacher_skipped_are_left_out(tmp_path):
    dataset = Dataset("mine", tmp_path, {"train": records("train", 6)})
    rows = {"train": unit_rows(12, 8, 0)}
    add_teacher(tmp_path / "s.h5", dataset, "words", settings("text", 8), rows, skipped=[3])
    teachers = SplitTeachers(EmbeddingStore(tmp_path / "s.h5"), ("train",))
    tokens = [{"image": number, "text": torch.tensor([number])} for number in range(4)]
    labelled = labelled_tokens(tokens, np.array([2, 3, 5, 3]), teachers, "train")
    assert [item["text"].tolist() for item in labelled] == [[-1, -3, 0], [-1, -6, 2]]
    assert [item["image"] for item in labelled] == [0, 2]


def test_open_clip_4_has_tasks(trainer, tiny_clip, folder, monkeypatch):
    """Its trainer makes a task of model and loss, and gives it batches that are dictionaries."""
    import open_clip
    import open_clip_train.main

    def create_task(args, model, dist_model=None):
        return SimpleNamespace(trainable_module=model, loss=open_clip.ClipLoss())

    monkeypatch.setattr(open_clip, "create_task", create_task, raising=False)
    monkeypatch.setattr(open_clip_train.main, "create_task", create_task, raising=False)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda: (tiny_clip, None, None))
    teachers, images, _, _, texts = _labelled_batch(folder, 5, splits=("train",))
    args = SimpleNamespace(train_data=None)
    functions = trainer.SoftLabelsInTrainer(LossConfig(), teachers, args).replacements()
    assert "create_loss" not in functions
    model, *_ = functions["create_model_and_transforms"]()
    task = functions["create_task"](args, model=model)
    # The optimizer gets the parameters of this module alone.
    trained = dict(task.trainable_module.named_parameters())
    assert {f"soft_labels.cusa.{name}" for name in TEMPERATURES} <= trained.keys()
    losses = task.loss(**task.trainable_module(image=images, text=texts), output_dict=True)
    assert losses.keys() == {"contrastive_loss", "csa_loss", "usa_loss"}


def _bad_tables(folder, tmp_path):
    pairs = [(folder / "0.png", "not its caption")]
    _write_table(tmp_path / "other.tsv", pairs)
    _write_table(tmp_path / "header.tsv", pairs, header=("image", "caption"))
    (tmp_path / "empty.tsv").touch()


@pytest.mark.parametrize(
    ("flag", "value", "kind", "name"),
    [
        ("--train-data", "{folder}/val.tsv", DataError, "{val_image}"),
        ("--train-data", "{tmp}/other.tsv", DataError, "{folder}/0.png"),
        ("--train-data", "{tmp}/header.tsv", DataError, "csv_img_key"),
        ("--train-data", "{tmp}/empty.tsv", DataError, ""),
        ("--csv-separator", ",", DataError, "csv_img_key"),
        ("--train-data", "{tmp}/x.tar", SettingError, "train_data"),
        ("--dataset-type", "synthetic", SettingError, "train_data"),
        ("--distill-model", "ViT-B-32", SettingError, "distill_model"),
        ("--set", "loss.terms=[contrastive]", SettingError, "loss.terms"),
        ("--set", "loss.alpha=x", SettingError, "loss.alpha"),
        ("--set", "train.epochs=3", SettingError, "train.epochs"),
        ("--set", "data.train_split=test", StoreError, "test"),
        ("--set", "data.image_teacher=clip", StoreError, "clip"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    trainer, folder, tmp_path, flag, value, kind, name
):
    _bad_tables(folder, tmp_path)
    value = value.format(folder=folder, tmp=tmp_path)
    arguments, given = _arguments(folder, tmp_path / "logs"), []
    if flag == "--set":
        given = [value]
    else:
        arguments += [flag, value]
    with pytest.raises(kind) as caught:
        trainer.train(folder / "store.h5", arguments, given)
    val_image = (folder / "val.tsv").read_text().split()[2]
    assert caught.value.name == name.format(folder=folder, val_image=val_image)
    assert not (tmp_path / "logs").exists()


def test_processes_must_gather_with_gradients(trainer, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError) as caught:
        trainer.train(folder / "store.h5", _arguments(folder, tmp_path))
    assert caught.value.name == "gather_with_grad"


def test_a_run_without_soft_labels_is_not_resumed(trainer, folder, whole, tmp_path):
    _, checkpoint = whole
    state = checkpoint["state_dict"]
    for drop in ("soft_labels.", "soft_labels.uni_heads."):
        kept = {name: value for name, value in state.items() if not name.startswith(drop)}
        torch.save({**checkpoint, "state_dict": kept}, tmp_path / "epoch_2.pt")
        with pytest.raises(RunError) as caught:
            _train(trainer, folder, tmp_path / drop, "--resume", tmp_path / "epoch_2.pt")
        assert caught.value.name == "soft_labels"


def test_the_command(trainer, folder, whole, tmp_path):
    arguments = ["--embeddings", str(folder / "store.h5"), "--set", "loss.terms=[csa]", "--"]
    with _logging_as_before():
        result = CliRunner().invoke(command, [*arguments, *_arguments(folder, tmp_path)])
    assert result.exit_code == 0, result.output
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    trained = torch.load(checkpoint)["state_dict"]
    assert [name for name in trained if "soft_labels" in name] == [
        "soft_labels.cusa.tau_csa",
        "soft_labels.cusa.tau_soft",
    ]
    out = tmp_path / "plain.safetensors"
    assert CliRunner().invoke(command, ["export", str(checkpoint), str(out)]).exit_code == 0
    assert out.is_file()
    # open_clip does not take a name twice.
    result = CliRunner().invoke(command, [*arguments, *_arguments(folder, tmp_path)])
    assert result.exit_code == 1
    assert isinstance(result.exception.__context__, CusaError)

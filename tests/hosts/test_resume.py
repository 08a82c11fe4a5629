"""The real trainers: stopped and resumed, they end where they would have without a stop."""

import math

import pytest
import torch
from safetensors.torch import load_file

from cusa.data.errors import RunError
from cusa.data.images import load_image
from cusa.train.loss.cusa_loss import CUSALoss
from tests.hosts.trainers import hugging_face, make_inputs, sentence_transformers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("host", [hugging_face, sentence_transformers])
def test_a_resumed_run_is_the_whole_one(tmp_path, inputs, host):
    whole, whole_module = host(inputs, tmp_path / "whole", 4)
    whole.train()
    host(inputs, tmp_path / "halves", 2)[0].train()
    resumed, resumed_module = host(inputs, tmp_path / "halves", 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-2"))
    whole_state, resumed_state = whole_module.state_dict(), resumed_module.state_dict()
    assert whole_state.keys() == resumed_state.keys()
    for name, value in whole_state.items():
        assert torch.equal(value, resumed_state[name]), name
    temperatures = [name for name in whole_state if "tau" in name]
    assert temperatures
    start = CUSALoss().state_dict()
    assert any(whole_state[name] != start[name.split(".")[-1]] for name in temperatures)
    assert whole.evaluate()["eval_loss"] == resumed.evaluate()["eval_loss"]


@pytest.mark.parametrize("host", [hugging_face, sentence_transformers])
def test_a_text_teacher_alone_trains_the_text_direction(tmp_path, host):
    trainer, module = host(make_inputs(tmp_path, teachers=("words",)), tmp_path / "run", 2)
    trainer.train()
    start = CUSALoss().state_dict()
    learned = {}
    for name, value in module.state_dict().items():
        if name.rpartition(".")[2] in start:
            learned[name.rpartition(".")[2]] = value != start[name.rpartition(".")[2]]
    assert learned["tau_usa_text"]
    assert not learned["tau_usa_image"]
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("host", [hugging_face, sentence_transformers])
def test_heads_without_soft_labels_have_the_gradients_that_ddp_asks_for(tmp_path, host):
    trainer, module = host(make_inputs(tmp_path, teachers=("words",)), tmp_path / "run", 1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    lacking = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []


def test_a_checkpoint_without_temperatures_is_refused(tmp_path, inputs):
    trainer, _ = sentence_transformers(inputs, tmp_path, 2)
    trainer.train()
    path = tmp_path / "checkpoint-2" / "cusa_loss.safetensors"
    path.unlink()
    trainer, _ = sentence_transformers(inputs, tmp_path, 4)
    with pytest.raises(RunError) as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert caught.value.path == path


def test_the_best_model_comes_with_its_temperatures(tmp_path, inputs):
    """The first checkpoint is the best, as the loss on val is made to grow."""
    trainer, loss = sentence_transformers(
        inputs,
        tmp_path,
        4,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[0] > losses[1]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    saved = load_file(tmp_path / "checkpoint-2" / "cusa_loss.safetensors")
    last = load_file(tmp_path / "checkpoint-4" / "cusa_loss.safetensors")
    assert saved["tau"] != last["tau"]
    for name, value in loss.cusa.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert trainer.evaluate()["eval_loss"] == losses[0]


def test_temperatures_are_not_decayed(tmp_path, inputs):
    for host in (hugging_face, sentence_transformers):
        trainer, module = host(inputs, tmp_path, 2, weight_decay=0.1)
        optimizer = trainer.create_optimizer()
        decayed = set()
        for group in optimizer.param_groups:
            if group["weight_decay"]:
                decayed.update(map(id, group["params"]))
        assert decayed
        for name, parameter in module.named_parameters():
            assert "tau" not in name or id(parameter) not in decayed, name


def test_the_evaluator_finds_images_by_captions(tmp_path):
    """Against ranks of the model's own embeddings; a missing image is an error, not a text."""
    inputs = make_inputs(tmp_path)
    trainer, loss = sentence_transformers(inputs, tmp_path / "run", 2)
    split = inputs.store.split("val")
    pictures = [load_image(inputs.store.image_root / path) for path in split.image_paths]
    texts = list(split.captions)
    similarity = loss.model.similarity(loss.model.encode(texts), loss.model.encode(pictures))
    own_image = torch.tensor(split.caption_image)[:, None]
    is_closer = similarity > similarity.gather(1, own_image)
    recall = (is_closer.sum(1) < 5).float().mean().item()
    figures = trainer.evaluate()
    assert figures["eval_val_cosine_accuracy@5"] == pytest.approx(recall)

    (inputs.store.image_root / split.image_paths[0]).unlink()
    with pytest.raises(ValueError, match=split.image_paths[0]):
        trainer.evaluator(loss.model)


def test_the_model_card_cites_the_paper(tmp_path, inputs):
    trainer, loss = sentence_transformers(inputs, tmp_path, 2)
    trainer.train()
    trainer.model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "StoredSoftLabelLoss" in card
    assert loss.citation.strip() in card

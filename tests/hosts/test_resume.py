"""The real trainers: stopped and resumed, they end where they would have without a stop."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, CLIPModel, TrainingArguments

import cusa
from cusa.data.errors import RunError
from cusa.train.loss.cusa_loss import CUSALoss

MADE_UP = Path(cusa.__file__).parent.parent / "docs" / "examples" / "made_up.py"
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def made_up():
    spec = importlib.util.spec_from_file_location("made_up_for_hosts", MADE_UP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(made_up, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return made_up.make_data(folder).store, made_up.make_clip(folder / "clip")


def _arguments(kind, folder, steps):
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        max_steps=steps,
        # The schedule of the run that was stopped must be that of the whole one.
        lr_scheduler_type="constant",
        learning_rate=1e-3,
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        gradient_accumulation_steps=2,
    )


def _hugging_face(data, folder, steps):
    from cusa.hosts.transformers import (
        LABEL_NAMES,
        SoftLabelCollator,
        SoftLabelModel,
        SoftLabelTrainer,
        pairs_dataset,
    )

    store, clip = data
    torch.manual_seed(0)
    model = SoftLabelModel(CLIPModel.from_pretrained(clip, trust_remote_code=False), CUSALoss())
    arguments = _arguments(TrainingArguments, folder, steps)
    arguments.label_names = LABEL_NAMES
    arguments.remove_unused_columns = False
    processor = AutoProcessor.from_pretrained(clip, trust_remote_code=False)
    trainer = SoftLabelTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs_dataset(store, "train"),
        eval_dataset=pairs_dataset(store, "val"),
        data_collator=SoftLabelCollator(store, SPLITS, processor),
    )
    return trainer, model


def _sentence_transformers(data, folder, steps):
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.modules import Transformer

    from cusa.hosts.sentence_transformers import (
        SoftLabelCallback,
        StoredSoftLabelLoss,
        pairs_dataset,
        with_uni_heads,
    )

    store, clip = data
    torch.manual_seed(0)
    model = with_uni_heads(Transformer(str(clip)))
    loss = StoredSoftLabelLoss(model, store, SPLITS)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=_arguments(SentenceTransformerTrainingArguments, folder, steps),
        train_dataset=pairs_dataset(store, SPLITS, "train"),
        eval_dataset=pairs_dataset(store, SPLITS, "val"),
        loss=loss,
        callbacks=[SoftLabelCallback(loss)],
    )
    return trainer, loss


@pytest.mark.parametrize("host", [_hugging_face, _sentence_transformers])
def test_a_resumed_run_is_the_whole_one(tmp_path, data, host):
    whole, whole_module = host(data, tmp_path / "whole", 4)
    whole.train()
    host(data, tmp_path / "halves", 2)[0].train()
    resumed, resumed_module = host(data, tmp_path / "halves", 4)
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


def test_a_checkpoint_without_temperatures_is_refused(tmp_path, data):
    trainer, _ = _sentence_transformers(data, tmp_path, 2)
    trainer.train()
    path = tmp_path / "checkpoint-2" / "cusa_loss.safetensors"
    path.unlink()
    trainer, _ = _sentence_transformers(data, tmp_path, 4)
    with pytest.raises(RunError) as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert caught.value.path == path


def test_the_model_card_cites_the_paper(tmp_path, data):
    trainer, loss = _sentence_transformers(data, tmp_path, 2)
    trainer.train()
    trainer.model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "StoredSoftLabelLoss" in card
    assert loss.citation.strip() in card

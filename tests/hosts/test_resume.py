"""The real trainers: stopped and resumed, they end where they would have without a stop."""

import pytest
import torch

from cusa.data.errors import RunError
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


def test_a_checkpoint_without_temperatures_is_refused(tmp_path, inputs):
    trainer, _ = sentence_transformers(inputs, tmp_path, 2)
    trainer.train()
    path = tmp_path / "checkpoint-2" / "cusa_loss.safetensors"
    path.unlink()
    trainer, _ = sentence_transformers(inputs, tmp_path, 4)
    with pytest.raises(RunError) as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert caught.value.path == path


def test_the_model_card_cites_the_paper(tmp_path, inputs):
    trainer, loss = sentence_transformers(inputs, tmp_path, 2)
    trainer.train()
    trainer.model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "StoredSoftLabelLoss" in card
    assert loss.citation.strip() in card

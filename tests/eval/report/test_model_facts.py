"""What the report says of models beside figures: told once where all share it, never made up."""

import pytest

from cusa.eval.report.model_facts import Fact, duration, model_facts, settings_facts
from cusa.eval.report.tables import NONE

TRAINING = {
    "began": "2026-11-29T01:23:46+00:00",
    "seconds": 200.4,
    "sessions": 2,
    "machines": ["AMD EPYC, 2 cores", "H200"],
    "processes": 1,
    "versions": {"python": "3.11.7", "cusa": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
}
RUN = {
    "kind": "run",
    "student": "adapter",
    "normalizer": "albef",
    "loss_terms": ["contrastive", "csa"],
    "epoch": 3,
    "checkpoint": "best",
    "weights_sha256": "0123456789abcdef" * 4,
    "dataset": "photos",
    "n_pairs": 1200,
    "teachers": {"image": "vision", "text": "words"},
    "encoders": {"image": "vision", "text": "words"},
    "settings": {
        "loss.alpha": 0.1,
        "loss.beta": 0.5,
        "train.seed": 7,
        "train.epochs": 10,
        "train.batch_size": 128,
        "optim.lr": 0.001,
        "loss.fuse": True,
        "loss.terms": ["contrastive", "csa"],
    },
    "training": TRAINING,
}


def test_facts_of_a_run():
    assert {fact.title: fact.values for fact in model_facts([RUN])} == {
        "Model": ("adapter: trained heads on frozen encoders",),
        "Loss": ("contrastive + csa (alpha 0.1)",),
        "Teachers": ("vision (images), words (captions)",),
        "Encoders": ("vision (images), words (captions)",),
        "Captions": ("in lower case, without punctuation, cut to 64 words",),
        "Training": ("1,200 pairs of photos, batch size 128, learning rate 0.001",),
        "Seed": ("7",),
        "Weights": ("epoch 3 of 10, best checkpoint, sha256 0123456789ab",),
        "Trained": ("29 November 2026, 3.3 min, 2 sessions",),
        "Machine": ("AMD EPYC, 2 cores; H200",),
        "Versions": ("cusa 0.1.0, PyTorch 2.13.0, Python 3.11.7",),
    }


def test_models_that_are_no_runs_have_dashes():
    model = {"kind": "hf", "source": "/models/clip", "normalizer": "none", "weights_sha256": None}
    facts = {fact.title: fact for fact in model_facts([RUN, model])}
    assert facts["Model"].values[1] == "Hugging Face model, /models/clip"
    scores = {"kind": "scores", "source": "sims.npy"}
    assert model_facts([RUN, scores])[0].values[1] == "scores in a file, sims.npy"
    assert facts["Captions"].values[1] == "as written"
    assert facts["Seed"].values == ("7", NONE)
    assert not facts["Seed"].is_shared
    assert model_facts([{}]) == []


def test_what_all_share_is_told_once():
    facts = {fact.title: fact for fact in model_facts([RUN, {**RUN, "teachers": {}}])}
    assert facts["Seed"].is_shared
    assert facts["Teachers"].values[1] == "none: the loss uses no soft labels"
    assert not facts["Teachers"].is_shared
    assert not Fact("Seed", ("7",)).is_shared


def test_settings_that_differ_come_first():
    other = {**RUN, "settings": {**RUN["settings"], "train.seed": 8, "new": None}}
    facts = settings_facts([RUN, other])
    assert [(fact.title, fact.values) for fact in facts[:2]] == [
        ("train.seed", ("7", "8")),
        ("new", (NONE, "none")),
    ]
    shared = {fact.title: fact.values[0] for fact in facts[2:]}
    assert shared["loss.terms"] == "contrastive, csa"
    assert shared["loss.fuse"] == "on"
    assert settings_facts([{"kind": "hf"}]) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (100, "1.7 min"), (7200, "2.0 h")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_a_time_of_another_form_is_shown_as_it_is():
    (fact,) = model_facts([{"training": {**TRAINING, "began": "soon", "versions": {}}}])[:1]
    assert fact == Fact("Trained", ("soon, 3.3 min, 2 sessions",))

"""What a loss would make of a store's batches: against loops over the teachers' cosines."""

import json
import math

import numpy as np
import pytest
import torch

from cusa.data.errors import SettingError, StoreError
from cusa.eval.inspection.target_figures import TargetFigures, target_figures
from cusa.train.loader import Batch
from cusa.train.loss.config import LossConfig
from cusa.train.loss.rules.settings import DrSigmoidConfig, GuideConfig
from tests.eval.inspection.test_soft_labels import make_odd_store
from tests.helpers import run_failure, run_ok

N = 7
IDS = [3, 1, 3, 4, 5, 9, 2]


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    image, text, clip_image, clip_text = (torch.randn(N, 3, generator=rng) for _ in range(4))
    no_inputs = torch.empty(N, 0)
    return Batch(
        images=no_inputs,
        texts=no_inputs,
        teacher_image=image,
        teacher_text=text,
        image_ids=torch.tensor(IDS),
        cross_teachers=((clip_image, clip_text),),
    )


def _cosines(queries, candidates):
    queries, candidates = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (queries.double().numpy(), candidates.double().numpy())
    )
    return queries @ candidates.T


def _shares(row):
    exponentials = [math.exp(value) for value in row]
    return [exponential / sum(exponentials) for exponential in exponentials]


def test_labels_of_each_term_and_of_a_rule(batch):
    loss = LossConfig(rule="xclr", terms=("contrastive", "usa"), top_k=3)
    figures = target_figures(batch, loss)
    assert set(figures) == {(name, m) for name in ("usa", "xclr") for m in ("image", "text")}
    text = _cosines(batch.teacher_text, batch.teacher_text)
    image = _cosines(batch.teacher_image, batch.teacher_image)
    for key, cosines, tau in (
        (("usa", "image"), image, 1),
        (("usa", "text"), text, 1),
        (("xclr", "image"), text, 0.1),
        (("xclr", "text"), text, 0.1),
    ):
        owns, others, perplexities = [], [], []
        for i in range(N):
            kept = sorted(range(N), key=lambda j: -cosines[i, j])[:3]
            labels = dict(zip(kept, _shares([cosines[i, j] / tau for j in kept]), strict=True))
            owns.append(labels[i])
            others.append(max([p for j, p in labels.items() if IDS[j] != IDS[i]], default=0))
            entropy = -sum(p * math.log(p) for p in labels.values())
            perplexities.append(math.exp(entropy))
        expected = [np.mean(perplexities), np.mean(owns), np.mean(others)]
        got = figures[key]
        assert [got.perplexity, got.own_label, got.greatest_other_label] == pytest.approx(
            expected, rel=1e-4
        )
        assert math.isnan(got.leaving)


def test_candidates_that_leave(batch):
    loss = LossConfig(rule="guide", terms=(), guide=GuideConfig("either", 0.5))
    image = _cosines(batch.teacher_image, batch.teacher_image)
    text = _cosines(batch.teacher_text, batch.teacher_text)
    counts = [
        sum(max(image[i, j], text[i, j]) > 0.5 and IDS[j] != IDS[i] for j in range(N))
        for i in range(N)
    ]
    assert sum(counts) > 0
    for figures in target_figures(batch, loss).values():
        assert figures.leaving == pytest.approx(np.mean(counts))
        assert figures.rows == pytest.approx(np.mean([count > 0 for count in counts]))


def test_signs_of_a_cross_modal_teacher(batch):
    settings = DrSigmoidConfig(teacher_bias=-2)
    loss = LossConfig(rule="dr-sigmoid", terms=(), dr_sigmoid=settings, cross_teacher_taus=(0.2,))
    figures = target_figures(batch, loss)
    clip_image, clip_text = batch.cross_teachers[0]
    for modality, cosines in (
        ("image", _cosines(clip_image, clip_text)),
        ("text", _cosines(clip_text, clip_image)),
    ):
        signs = 2 / (1 + np.exp(2 - cosines / 0.2)) - 1
        others = [max(signs[i, j] for j in range(N) if IDS[j] != IDS[i]) for i in range(N)]
        expected = TargetFigures(
            own_label=pytest.approx(np.mean(np.diag(signs)), rel=1e-4),
            greatest_other_label=pytest.approx(np.mean(others), rel=1e-4),
        )
        got = figures["dr-sigmoid", modality]
        assert got.own_label == expected.own_label
        assert got.greatest_other_label == expected.greatest_other_label


def test_the_command_shows_the_targets_of_a_loss(tmp_path):
    index = make_odd_store(tmp_path)
    settings = ("--set", "loss.rule=guide", "--set", "loss.guide.margin=0.4")
    arguments = ("store", "inspect", index, "--batch-size", 4, "--pairs", 2, *settings)
    targets = json.loads(run_ok(*arguments, "--json"))["targets"]
    assert set(targets) == {"csa", "usa", "guide"}
    assert targets["guide"]["image"]["leaving"] >= 0
    assert targets["guide"]["image"]["perplexity"] is None
    assert "guide" in run_ok(*arguments)
    assert "Targets of the loss" in index.with_suffix(".inspect.html").read_text()


def test_losses_without_targets_in_the_store_are_refused(tmp_path):
    index = make_odd_store(tmp_path)
    arguments = ("store", "inspect", index, "--batch-size", 4, "--set")
    for setting, error_class, name in (
        ("loss.rule=self-guide", SettingError, "loss.rule"),
        ("loss.rule=features", SettingError, "loss.rule"),
        ("loss.rule=guided", SettingError, "loss.rule"),
        ("loss.rule=dr", StoreError, "cross"),
    ):
        error = run_failure(*arguments, setting)
        assert isinstance(error, error_class)
        assert error.name == name

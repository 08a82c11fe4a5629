"""The matching head's hard negatives and soft targets, against loops."""

import math

import pytest
import torch

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.matching import hard_negatives, matching_loss, matching_targets


def test_negatives_are_of_other_images_and_drawn_by_their_similarity():
    similarity = torch.tensor(
        [[9.0, 9.0, 1.0, 0.0], [9.0, 9.0, 0.0, 2.0], [0.0, 0.0, 9.0, 0.0], [1.0, 0.0, 2.0, 9.0]]
    )
    ids = torch.tensor([7, 7, 3, 5])
    rng = torch.Generator().manual_seed(0)
    draws = torch.stack([hard_negatives(similarity, ids, 0.5, rng) for _ in range(4000)])
    for i, row in enumerate(similarity.tolist()):
        weights = [math.exp(s / 0.5) if ids[j] != ids[i] else 0.0 for j, s in enumerate(row)]
        for j, weight in enumerate(weights):
            share = (draws[:, i] == j).double().mean().item()
            assert share == pytest.approx(weight / sum(weights), abs=0.03)
            assert weight or share == 0


def test_the_same_seed_draws_the_same():
    similarity = torch.randn(20, 20)
    one, two = (
        hard_negatives(similarity, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, two)
    assert (one != torch.arange(20)).all()


def test_a_batch_of_one_image_has_no_negatives():
    with pytest.raises(EmbeddingsError) as error:
        hard_negatives(torch.eye(2), torch.tensor([4, 4]))
    assert error.value.location == "rows 0, 1"


def test_soft_targets_are_the_labels_of_the_drawn_pairs():
    labels = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.0, 0.5, 0.5]])
    assert matching_targets(labels, torch.tensor([2, 0, 1])).tolist() == pytest.approx(
        [0.1, 0.3, 0.5]
    )


@pytest.mark.parametrize("width", [1, 2])
def test_the_loss_equals_a_loop_and_with_hard_targets_the_usual_one(width):
    logits = torch.randn(6, width, dtype=torch.float32).squeeze(1)
    targets = torch.tensor([1.0, 1.0, 0.0, 0.25, 0.9, 0.0])
    total = 0.0
    for logit, target in zip(logits.tolist(), targets.tolist(), strict=True):
        score = logit[1] - logit[0] if width == 2 else logit
        p = 1 / (1 + math.exp(-score))
        total -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert matching_loss(logits, targets).item() == pytest.approx(total / 6, rel=1e-6)
    if width == 2:
        hard = targets.round()
        usual = torch.nn.functional.cross_entropy(logits, hard.long())
        torch.testing.assert_close(matching_loss(logits, hard), usual)


@pytest.mark.parametrize(
    ("logits", "targets", "name"),
    [
        (torch.zeros(3, 3), torch.zeros(3), "logits"),
        (torch.zeros(3), torch.zeros(4), "logits"),
        (torch.zeros(2), torch.tensor([0.0, 1.5]), "targets"),
        (torch.zeros(2), torch.tensor([0.0, torch.nan]), "targets"),
    ],
)
def test_what_does_not_fit_is_refused(logits, targets, name):
    with pytest.raises(EmbeddingsError) as error:
        matching_loss(logits, targets)
    assert error.value.name == name

"""Weights beside a host's own loss: the gradients then have the sizes that were asked for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.balance import balanced_config
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss

SOFT_LABELS = LossConfig(terms=("csa", "usa"), alpha=1.0, beta=0.75)


class Host(nn.Module):
    """Shared encoders, uni-modal heads that only USA trains, and a scale that only the host has."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])
        self.uni_heads = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4)])
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.double()

    def losses(self, config, batch):
        """A sum of hinges, as of VSE++, and the loss of soft labels."""
        features = [encoder(rows) for encoder, rows in zip(self.encoders, batch[:2], strict=True)]
        uni = [head(rows) for head, rows in zip(self.uni_heads, features, strict=True)]
        v, t = (nn.functional.normalize(rows) for rows in features)
        similarity = v @ t.T
        violations = (0.2 + similarity - similarity.diag()[:, None]).clamp(min=0)
        hinge = self.scale * (violations.sum() - violations.diag().sum())
        return hinge, CUSALoss(config).double()(*features, *uni, *batch[2:]).total


@pytest.fixture
def host():
    torch.manual_seed(0)
    return Host()


@pytest.fixture
def batches():
    rng = torch.Generator().manual_seed(1)
    dims = (6, 6, 7, 3)
    return [
        [torch.randn(8, dim, generator=rng, dtype=torch.float64) for dim in dims] for _ in range(3)
    ]


def _norms(host, config, batches):
    """The mean norms of both gradients over the encoders, by hand."""
    sums = [0.0, 0.0]
    for batch in batches:
        for number in range(2):
            host.zero_grad()
            host.losses(config, batch)[number].backward()
            squares = [(p.grad**2).sum() for p in host.encoders.parameters()]
            sums[number] += torch.stack(squares).sum().sqrt().item() / len(batches)
    return sums


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_gradients_have_the_ratio_asked_for(host, batches, ratio):
    losses = (host.losses(SOFT_LABELS, batch) for batch in batches)
    config = balanced_config(SOFT_LABELS, losses, host.parameters(), ratio)
    assert config.beta == pytest.approx(0.75 * config.alpha)
    assert config == replace(
        SOFT_LABELS,
        alpha=config.alpha,
        beta=config.beta,
        contrastive_weight=config.contrastive_weight,
        rule_weight=config.rule_weight,
    )
    before = _norms(host, SOFT_LABELS, batches)
    assert before[1] < 0.1 * before[0]  # the paper's weights are far from any balance here
    of_host, of_soft_labels = _norms(host, config, batches)
    assert of_soft_labels == pytest.approx(ratio * of_host, rel=1e-6)


def test_the_same_batches_give_the_same_weights_and_no_gradients_are_left(host, batches):
    configs = []
    for _ in range(2):
        losses = (host.losses(SOFT_LABELS, batch) for batch in batches)
        configs.append(balanced_config(SOFT_LABELS, losses, host.parameters()))
    assert configs[0] == configs[1]
    assert all(parameter.grad is None for parameter in host.parameters())


def test_settings_may_be_a_mapping(host, batches):
    settings = {"terms": ("csa", "usa"), "alpha": 1.0, "beta": 0.75}
    balanced = []
    for config in (SOFT_LABELS, settings):
        losses = [host.losses(config, batch) for batch in batches]
        balanced.append(balanced_config(config, losses, host.parameters()))
    assert balanced[0] == balanced[1]


def test_what_cannot_be_measured_is_refused(host, batches):
    def losses(**changes):
        for batch in batches:
            hinge, soft_labels = host.losses(SOFT_LABELS, batch)
            yield changes.get("hinge", hinge), changes.get("soft_labels", soft_labels)

    frozen = [p.detach() for p in host.parameters()]
    zero = 0 * host.losses(SOFT_LABELS, batches[0])[0]
    not_finite = torch.nan * host.losses(SOFT_LABELS, batches[0])[0]
    logged = CUSALoss().double()(*[batches[0][0]] * 6).csa
    for arguments, name in (
        (([], host.parameters()), "losses"),
        ((losses(), []), "parameters"),
        ((losses(), frozen), "parameters"),
        ((losses(), [host.scale]), "parameters"),
        ((losses(), host.uni_heads.parameters()), "parameters"),
        ((losses(hinge=zero), host.parameters()), "losses"),
        ((losses(hinge=not_finite), host.parameters()), "losses"),
        ((losses(soft_labels=logged), host.parameters()), "losses"),
        ((losses(hinge=1.5), host.parameters()), "losses"),
    ):
        with pytest.raises(EmbeddingsError) as error:
            balanced_config(SOFT_LABELS, *arguments)
        assert error.value.name == name
    for ratio in (0, -1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(SettingError) as error:
            balanced_config(SOFT_LABELS, losses(), host.parameters(), ratio)
        assert error.value.name == "ratio"
    with pytest.raises(SettingError) as error:
        balanced_config(SOFT_LABELS, losses(), host.parameters(), 1e9)
    assert error.value.name == "alpha"

"""Learning rates against lists computed by hand, and against timm's formula written out."""

import math

import pytest

from cusa.train.config_building import build_config
from cusa.train.preset_files import load_preset
from cusa.train.schedule import learning_rate


def _config(epochs, **optim):
    return build_config({"optim": {"lr": 1.0, "min_lr": 0.1, **optim}, "train": {"epochs": epochs}})


def test_by_step_it_warms_up_and_ends_at_the_minimum():
    config = _config(3, warmup_epochs=1)
    rates = [learning_rate(step, 4, config) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    # Seven intervals of a half cosine: 0.1 + 0.45 (1 + cos(pi k / 7)).
    assert rates[4:] == pytest.approx(
        [1.0, 0.955436, 0.830570, 0.650134, 0.449866, 0.269430, 0.144564, 0.1], abs=1e-6
    )


def test_runs_of_earlier_versions_go_on_with_the_same_rates_to_the_last_bit():
    config = build_config(
        {"optim": {"lr": 1e-3, "min_lr": 1e-5, "warmup_epochs": 1}, "train": {"epochs": 3}}
    )
    assert [learning_rate(step, 5, config) for step in (2, 4, 5, 9, 14)] == [
        0.0006000000000000001,  # 1e-3 * 3 / 5, in this order
        0.001,
        0.001,
        1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * (4 / 9))) / 2,
        1e-5,
    ]


def test_by_epoch_it_is_constant_within_each_as_published():
    """Four epochs: cos(pi e / 4) is 1, 1/sqrt(2), 0, -1/sqrt(2)."""
    config = _config(4, schedule="epoch")
    rates = [learning_rate(step, 3, config) for step in range(12)]
    expected = [1.0, 0.868198, 0.55, 0.231802]
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)], abs=1e-6)


def test_by_epoch_the_warm_up_shifts_the_cosine():
    config = _config(4, schedule="epoch", warmup_epochs=2)
    rates = [learning_rate(3 * epoch, 3, config) for epoch in range(4)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.868198], abs=1e-6)
    assert (
        learning_rate(0, 3, _config(4, schedule="epoch", warmup_epochs=0.5)) == 1.0
    )  # never above the peak


def test_the_papers_schedule_is_that_of_the_published_trainer():
    """timm's CosineLRScheduler(t_initial=30, lr_min=1e-6, t_in_epochs=True), stepped with the
    epoch's number.
    """
    config = build_config(load_preset("paper-coco-vit-b32"))
    for epoch in range(30):
        expected = 1e-6 + 0.5 * (1e-5 - 1e-6) * (1 + math.cos(math.pi * epoch / 30))
        for step in (epoch * 4425, epoch * 4425 + 4424):
            assert learning_rate(step, 4425, config) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(0, 4425, config) == 1e-5
    assert learning_rate(30 * 4425 - 1, 4425, config) == pytest.approx(1.02465e-6, rel=1e-5)


@pytest.mark.parametrize("schedule", ["step", "epoch"])
def test_epochs_after_the_schedules_own_have_the_minimum(schedule):
    short = _config(3, schedule=schedule)
    long = _config(5, schedule=schedule, schedule_epochs=3)
    before = [learning_rate(step, 4, long) for step in range(12)]
    assert before == [learning_rate(step, 4, short) for step in range(12)]
    assert [learning_rate(step, 4, long) for step in range(12, 20)] == [0.1] * 8

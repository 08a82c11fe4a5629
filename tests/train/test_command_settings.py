"""The settings that a command line chooses: files, presets, ``--set`` and options."""

import pytest

from cusa.data.errors import SettingError
from cusa.train.command_settings import Given, flag_settings, nested_settings, new_settings
from cusa.train.sweep import parse_grid


def _config(index, flags, settings=(), config_file=None):
    given = Given(index, "adapter", config_file, nested_settings(settings), flags)
    return new_settings(given, flag_settings(given.flags))


def test_the_optimizers_options_are_its_settings(index):
    flags = {"lr": 2e-4, "weight_decay": 0.3, "warmup": 0.5, "epochs": 7}
    config = _config(index, flags)
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.warmup_epochs) == (2e-4, 0.3, 0.5)
    assert config.train.epochs == 7


def test_an_option_is_stronger_than_set_a_file_and_a_preset(index, tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text("optim: {lr: 3e-3, weight_decay: 0.3, warmup_epochs: 3}\n")
    settings = ("optim.lr=4e-3", "optim.weight_decay=0.4")
    config = _config(index, {"lr": 5e-3, "warmup": None}, settings, config_file=file)
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.warmup_epochs) == (5e-3, 0.4, 3)
    assert optim.min_lr == 1e-5  # the preset's


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"lr": 0.0}, "optim.lr"),
        ({"lr": -1e-3}, "optim.lr"),
        ({"lr": float("nan")}, "optim.lr"),
        ({"lr": float("inf")}, "optim.lr"),
        ({"lr": 1e-6}, "optim.min_lr"),  # the preset's is 1e-5
        ({"weight_decay": -0.1}, "optim.weight_decay"),
        ({"warmup": -1.0}, "optim.warmup_epochs"),
        ({"warmup": 10_000.0}, "optim.warmup_epochs"),  # of steps
        ({"warmup": 4.0, "epochs": 3}, "optim.warmup_epochs"),
    ],
)
def test_illegal_values_of_options_are_refused_by_the_settings_name(index, flags, name):
    with pytest.raises(SettingError) as refused:
        _config(index, flags)
    assert refused.value.name == name


def test_a_warm_up_may_take_the_whole_schedule(index):
    assert _config(index, {"warmup": 3.0, "epochs": 3}).optim.warmup_epochs == 3
    schedule = ("optim.schedule_epochs=5",)
    assert _config(index, {"warmup": 4.0, "epochs": 3}, schedule).train.epochs == 3


def test_a_sweep_takes_the_options_names():
    cells = parse_grid(["lr=1e-3,2e-3", "weight-decay=0", "warmup=0.5"])
    assert [cell.name for cell in cells] == [
        "lr-1e-3_weight_decay-0_warmup-0.5",
        "lr-2e-3_weight_decay-0_warmup-0.5",
    ]
    assert cells[0].settings["optim"] == {"lr": "1e-3", "weight_decay": 0, "warmup_epochs": 0.5}

"""Settings of the published code; test_losses.py compares what they compute with its figures."""

import copy
import json
from dataclasses import replace

import pytest
import yaml

from cusa.data.errors import FileFormatError, SettingError
from cusa.train.loss.config import LossConfig, Temperature
from tests.helpers import GOLDEN

# That of the published configs/vitb32/coco/cusa.yaml.
CUSA = json.loads((GOLDEN / "losses.json").read_text())["paper_coco_b32_n32"]["loss_config"]


def _changed(section, name, value):
    changed = copy.deepcopy(CUSA)
    changed[section][name] = value
    return changed


def test_the_published_settings_for_clip_are_our_defaults(tmp_path):
    config = LossConfig.from_published(CUSA)
    # Whether USA's own soft-label temperatures would be shared says nothing, as they are not used.
    assert replace(config, tau_soft_usa=LossConfig().tau_soft_usa) == LossConfig()
    assert config.usa_shares_soft
    path = tmp_path / "cusa.yaml"
    path.write_text(yaml.safe_dump({"is_all_gather": False, "loss_config": CUSA}))
    assert LossConfig.from_published(path) == LossConfig.from_published(str(path)) == config


def test_each_setting_is_taken():
    for section, name, value, ours in (
        ("contrastive", "is_on", False, {"terms": ("csa", "usa")}),
        ("contrastive", "rate", 2, {"contrastive_weight": 2}),
        ("contrastive", "contrastive_loss_mode", "sum", {"contrastive_scaling": "infonce"}),
        ("contrastive", "is_block_tau", True, {"tau": Temperature(0.05, 0.01, 0.10, False)}),
        ("cross_softlabel", "use_loss", "contrastive", {"csa_divergence": "cross_entropy"}),
        ("cross_softlabel", "cross_softlabel_mode", "dot", {"soft_label_source": "dot"}),
        ("uni_softlabel", "rate", 0.75, {"beta": 0.75}),
        ("uni_softlabel", "contrastive_loss_mode", "sum", {"usa_scaling": "infonce"}),
        ("uni_softlabel", "use_cross_softlabel_same_tau", True, {"usa_shares_csa": True}),
    ):
        config = LossConfig.from_published(_changed(section, name, value))
        for our_name, expected in ours.items():
            assert getattr(config, our_name) == expected, name
    separate = LossConfig.from_published(_changed("uni_softlabel", "text_tau_max", 0.8))
    assert (separate.tau_usa.image.max, separate.tau_usa.text.max) == (1.0, 0.8)
    soft = _changed("uni_softlabel", "the_softlabel_text_tau_min", 0.4)
    soft["uni_softlabel"]["is_block_softlabel_tau"] = False
    assert LossConfig.from_published(soft).tau_soft_usa.text == Temperature(1.0, 0.4, 1.0)
    assert LossConfig.from_published(soft).tau_soft == LossConfig().tau_soft


def _without(section, name):
    changed = copy.deepcopy(CUSA)
    del changed[section][name]
    return changed


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (_changed("cross_softlabel", "alpha", 0.1), "cross_softlabel.alpha"),
        (_changed("contrastive", 3, 0.1), "contrastive.3"),
        (_without("uni_softlabel", "rate"), "uni_softlabel.rate"),
        (_without("uni_softlabel", "is_on"), "uni_softlabel.is_on"),
        ({**CUSA, "itm": {}}, "itm"),
        ({**CUSA, "contrastive": 1}, "contrastive"),
        ({"loss_config": []}, "contrastive"),
        ({}, "contrastive"),
        (_changed("contrastive", "is_on", 1), "contrastive.is_on"),
        (
            _changed("contrastive", "contrastive_loss_mode", "max"),
            "contrastive.contrastive_loss_mode",
        ),
        (_changed("cross_softlabel", "use_loss", ["kl"]), "cross_softlabel.use_loss"),
        (_changed("cross_softlabel", "rate", "much"), "cross_softlabel.rate"),
        (_changed("cross_softlabel", "rate", float("nan")), "cross_softlabel.rate"),
        (_changed("cross_softlabel", "use_same_tau", "yes"), "cross_softlabel.use_same_tau"),
        (_changed("uni_softlabel", "image_tau_min", 2.0), "uni_softlabel.image_tau_min"),
    ],
)
def test_a_setting_that_is_unknown_missing_or_illegal_is_named(given, name):
    with pytest.raises(SettingError) as error:
        LossConfig.from_published(given)
    assert error.value.name == name


def test_a_loss_without_terms_is_refused():
    off = copy.deepcopy(CUSA)
    for section in off.values():
        section["is_on"] = False
    with pytest.raises(SettingError) as error:
        LossConfig.from_published(off)
    assert error.value.name == "contrastive.is_on"


def test_files_that_hold_no_settings(tmp_path):
    for text in ("", "- 1", "a: [", None):
        path = tmp_path / f"{hash(text)}.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(FileFormatError) as error:
            LossConfig.from_published(path)
        assert error.value.path == path

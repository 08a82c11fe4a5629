import pickle
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import yaml

from cusa.data.errors import CusaError, FileFormatError, SettingError
from cusa.train.config import Config
from cusa.train.config_building import (
    build_config,
    differing,
    load_config_file,
    merge,
    parse_settings,
    to_yaml,
)
from cusa.train.loss.config import LossConfig, Temperature
from cusa.train.preset_files import load_preset
from cusa.train.preset_files import presets as preset_names
from tests.helpers import Fault, fault_of


def test_presets():
    assert preset_names() == [
        "adapter",
        "adapter-published",
        "demo",
        "paper-coco-vit-b32",
        "paper-coco-vit-l14-336",
        "paper-flickr-vit-b32",
        "paper-flickr-vit-l14-336",
        "towers",
    ]
    configs = {name: build_config(load_preset(name)) for name in preset_names()}
    paper = configs["paper-coco-vit-b32"]
    assert (paper.train.batch_size, paper.train.epochs, paper.student.name) == (
        128,
        30,
        "openai/clip-vit-base-patch32",
    )
    assert (paper.optim.lr, paper.optim.min_lr, paper.optim.weight_decay) == (1e-5, 1e-6, 1e-4)
    assert (paper.loss.alpha, paper.loss.beta, paper.loss.contrastive_scaling) == (
        0.1,
        0.5,
        "paper",
    )
    for name in (
        name for name in preset_names() if name.startswith("paper-")
    ):  # as the published trainer does
        assert (configs[name].optim.schedule, configs[name].optim.grad_clip) == ("epoch", 0)
    assert (configs["adapter"].optim.schedule, configs["adapter"].optim.grad_clip) == ("step", 1)
    assert configs["paper-flickr-vit-b32"].train.epochs == 40
    assert configs["paper-coco-vit-l14-336"].train.batch_size == 16
    assert configs["demo"].student.name == "adapter"
    assert configs["adapter-published"].loss == configs["demo"].loss == LossConfig()
    sharp = configs["adapter"].loss
    assert (sharp.alpha, sharp.beta, sharp.tau_soft.mean().init) == (1, 5, 0.3)
    with pytest.raises(CusaError) as refused:
        load_preset("x")
    assert fault_of(refused.value) == Fault(SettingError, name="preset")


def test_settings_reach_their_place():
    config = build_config(
        parse_settings(
            ["loss.alpha=0.2", "optim.lr=1e-5", "loss.tau.init=0.07", "loss.terms=[csa]"]
        )
    )
    assert (config.loss.alpha, config.optim.lr, config.loss.terms) == (0.2, 1e-5, ("csa",))
    assert config.loss.tau == Temperature(0.07, 0.01, 0.10)
    assert differing(config, Config()) == [
        "loss.terms (['csa'] / ['contrastive', 'csa', 'usa'])",
        "loss.alpha (0.2 / 0.1)",
        "loss.tau.init (0.07 / 0.05)",
    ]


def test_a_written_config_reads_back(tmp_path):
    config = build_config(
        parse_settings(["student.name=adapter", "loss.tau_soft.shared=false", "train.workers=2"])
    )
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert build_config(load_config_file(tmp_path / "c.yaml")) == config


REFUSED = {
    "loss.alhpa=1": "loss.alhpa",
    "los.alpha=1": "los",
    "loss=3": "loss",
    "loss.tau=3": "loss.tau",
    "loss.alpha=much": "loss.alpha",
    "loss.alpha=-1": "loss.alpha",
    "loss.alpha=.nan": "loss.alpha",
    "loss.beta=.inf": "loss.beta",
    "loss.soft_label_source=none": "loss.soft_label_source",
    "loss.tau.min=0": "loss.tau.min",
    "loss.tau.min=0.2": "loss.tau.min",  # the greatest is 0.1
    "loss.tau.init=1e-300": "loss.tau.init",
    "loss.tau_csa.image.init=true": "loss.tau_csa.image.init",
    "loss.terms=[]": "loss.terms",
    "loss.terms=[csa, csa]": "loss.terms",
    "loss.terms=[kl]": "loss.terms",
    "loss.terms=csa": "loss.terms",
    "train.epochs=0": "train.epochs",
    "train.epochs=true": "train.epochs",
    "train.epochs='3'": "train.epochs",
    "train.epochs=2.5": "train.epochs",
    "train.epochs=null": "train.epochs",
    "train.epochs=1e400": "train.epochs",
    "train.epochs=[1, 2]": "train.epochs",
    "train.epochs=2001-01-01": "train.epochs",
    "train.batch_size=10**9": "train.batch_size",
    "train.batch_size=1e12": "train.batch_size",
    "train.workers=100000": "train.workers",
    "train.checkpoint_minutes=.inf": "train.checkpoint_minutes",
    "train.gather=1": "train.gather",
    "train.seed=-1": "train.seed",
    "train.seed=9223372036854775808": "train.seed",
    "train.device=tpu": "train.device",
    "student.dropout=1.5": "student.dropout",
    "student.embed_dim=1e12": "student.embed_dim",
    "student.name=''": "student.name",
    "data.image_teacher=123": "data.image_teacher",
    'data.image_root="\\ud800"': "data.image_root",
    'data.image_root="\\0"': "data.image_root",
    "optim.lr=0": "optim.lr",
    "optim.min_lr=5": "optim.min_lr",
    "optim.warmup_epochs=1e308": "optim.warmup_epochs",
    "optim.beta2=1": "optim.beta2",
    "loss.alpha": "loss.alpha",
    "loss.alpha={": "loss.alpha",
    "loss.alpha=!!bool foo": "loss.alpha",
    f"loss.alpha={'[' * 5000}": "loss.alpha",
    f"loss.alpha={'9' * 5000}": "loss.alpha",
    # beyond any float, but not beyond Python's limit of digits
    f"loss.alpha={'9' * 400}": "loss.alpha",
    f"train.epochs={'9' * 400}": "train.epochs",
    "train.epochs=.inf": "train.epochs",
    "loss.alpha={a: &a [1, 1, 1, 1, 1, 1, 1, 1], b: &b [*a, *a, *a, *a, *a, *a, *a, *a], "
    "c: &c [*b, *b, *b, *b, *b], d: &d [*c, *c, *c, *c, *c], "
    "e: [*d, *d, *d, *d, *d, *d, *d, *d]}": "loss.alpha",
    f"{'a.' * 5000}b=1": f"{'a.' * 5000}b",
}


@pytest.mark.parametrize(
    ("setting", "name"), REFUSED.items(), ids=[setting[:40] for setting in REFUSED]
)
def test_what_is_no_setting_is_refused_in_one_line_by_name(setting, name):
    with pytest.raises(SettingError) as error:
        build_config(parse_settings([setting]))
    assert error.value.name == name
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "pairs",
    [
        ["loss=3", "loss.alpha=0.2"],
        ["loss.tau=0.05", "loss.tau.init=0.07"],
        ["train.epochs=3", "train.epochs.x=4"],
        ["loss.tau=0.05", "loss={tau: {init: 0.07}}"],
    ],
)
def test_a_setting_is_not_hidden_by_one_below_it(pairs):
    with pytest.raises(SettingError) as error:
        parse_settings(pairs)
    assert error.value.name == pairs[0].partition("=")[0]


def test_a_refusal_says_what_is_legal():
    def message(setting):
        with pytest.raises(SettingError) as error:
            build_config(parse_settings([setting]))
        return str(error.value)

    assert "from 1 to 1,000,000, got 0" in message("train.batch_size=0")
    assert "above 0 to 100, got -1" in message("optim.lr=-1")
    assert "from 0 to below 1, got 1" in message("student.dropout=1")
    assert "from 0 to 256, or null, got -1" in message("train.workers=-1")
    sources = "one of each, image, text, add, dot, cross, got 'all'"
    assert sources in message("loss.soft_label_source=all")
    assert "legal: data, student, loss, optim, train" in message("los=1")
    assert "legal in loss: terms, alpha, beta" in message("loss.alhpa=1")
    assert "quotes" in message("data.image_teacher=123")


def test_numbers_are_read_in_every_form_that_yaml_may_give():
    given = [
        "optim.lr=1e-3",
        "train.epochs=1e2",
        "train.log_every=1_000",
        "loss.alpha=1",
        "train.workers=null",
    ]
    config = build_config(parse_settings([*given, "data.text_teacher=1e5"]))
    assert (config.optim.lr, config.train.epochs, config.train.log_every) == (1e-3, 100, 1000)
    assert (config.loss.alpha, config.train.workers) == (1.0, None)
    assert [type(x) for x in (config.train.epochs, config.loss.alpha)] == [int, float]
    assert config.data.text_teacher == "1e5"  # a name that looks like a number


def test_settings_are_checked_where_code_sets_them():
    refused = {
        "alpha": lambda: LossConfig(alpha=-1),
        "alhpa": lambda: LossConfig(alhpa=1),
        "beta": lambda: replace(LossConfig(), beta=np.float32("nan")),
        "max": lambda: Temperature(0.5, 0.1),
        "init": lambda: Temperature("hot", 0.1, 1.0),
        "min": lambda: Temperature(0.5, 0.2, 0.1),
        "tau": lambda: LossConfig(tau=0.5),
    }
    for name, make in refused.items():
        with pytest.raises(SettingError) as error:
            make()
        assert (error.value.name, "\n" in str(error.value)) == (name, False)
    assert LossConfig(terms=["csa"], alpha=np.float32(0.5)) == LossConfig(terms=("csa",), alpha=0.5)
    assert pickle.loads(pickle.dumps(Config())) == Config()


def test_sections_may_be_mappings_of_any_class():
    tau = MappingProxyType({"init": 0.07, "min": 0.01, "max": 0.1})
    config = build_config({"loss": MappingProxyType({"tau": tau})})
    assert config.loss.tau == Temperature(0.07, 0.01, 0.1)


def test_a_name_that_is_no_text_is_unknown():
    with pytest.raises(SettingError) as error:
        build_config({"train": {1: 2}})
    assert error.value.name == "train.1"


def test_config_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("loss: {alpha: 2}\n")
    assert build_config(merge(load_config_file(path), {"loss": {"beta": 3}})).loss.alpha == 2
    bombs = [
        "a: [",
        "- 1",
        "",
        "a: &a [*a]",
        "[" * 3000,
        "a: !!int x",
        "? [1]\n: 2",
        "a: !!python/name:os.system",
    ]
    contents = [
        *(text.encode() for text in bombs),
        b"\xff\xfe",
        b"a: b\0",
        b"a: " + b"1" * 2_000_000,
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(FileFormatError) as error:
            load_config_file(path)
        assert (error.value.path, "\n" in str(error.value)) == (path, False)
    for absent in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(FileFormatError):
            load_config_file(absent)
    assert yaml.safe_load(to_yaml(Config()))["loss"]["terms"] == ["contrastive", "csa", "usa"]


@pytest.mark.parametrize("name", ["student.name", "student.init"])
def test_an_empty_text_is_refused_with_the_length_that_is_legal(name):
    """An empty path would be the folder at hand."""
    with pytest.raises(SettingError) as refused:
        build_config(parse_settings([f'{name}=""']))
    assert refused.value.name == name

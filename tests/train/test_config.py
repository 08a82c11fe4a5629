import pytest
import yaml

from cusa.data.errors import CusaError
from cusa.train.config import (
    Config,
    build_config,
    differing,
    load_config_file,
    load_preset,
    merge,
    parse_settings,
    to_yaml,
)
from cusa.train.config import presets as preset_names
from cusa.train.losses import Temperature


def test_presets():
    assert preset_names() == [
        "adapter",
        "demo",
        "paper-coco-vit-b32",
        "paper-coco-vit-l14-336",
        "paper-flickr-vit-b32",
        "paper-flickr-vit-l14-336",
    ]
    configs = {name: build_config(load_preset(name)) for name in preset_names()}
    paper = configs["paper-coco-vit-b32"]
    assert (paper.train.batch_size, paper.train.epochs, paper.student.name) == (128, 30, "openai/clip-vit-base-patch32")
    assert (paper.optim.lr, paper.optim.min_lr, paper.optim.weight_decay) == (1e-5, 1e-6, 1e-4)
    assert (paper.loss.alpha, paper.loss.beta, paper.loss.contrastive_scaling) == (0.1, 0.5, "paper")
    assert configs["paper-flickr-vit-b32"].train.epochs == 40
    assert configs["paper-coco-vit-l14-336"].train.batch_size == 16
    assert configs["demo"].student.name == "adapter"
    with pytest.raises(CusaError, match="unknown preset 'x'; legal: adapter, demo, paper-coco"):
        load_preset("x")


def test_settings_reach_their_place():
    config = build_config(parse_settings(["loss.alpha=0.2", "optim.lr=1e-5", "loss.tau.init=0.07", "loss.terms=[csa]"]))
    assert (config.loss.alpha, config.optim.lr, config.loss.terms) == (0.2, 1e-5, ("csa",))
    assert config.loss.tau == Temperature(0.07, 0.01, 0.10)
    assert differing(config, Config()) == [
        "loss.terms (('csa',) / ('contrastive', 'csa', 'usa'))",
        "loss.alpha (0.2 / 0.1)",
        "loss.tau.init (0.07 / 0.05)",
    ]


def test_a_written_config_reads_back(tmp_path):
    config = build_config(parse_settings(["student.name=adapter", "loss.tau_soft.shared=false", "train.workers=2"]))
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert build_config(load_config_file(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loss.alhpa=1", r"unknown setting loss.alhpa; legal: loss.terms, loss.alpha, loss.beta"),
        ("los.alpha=1", "unknown setting los; legal: data, student, loss, optim, train"),
        ("loss=3", "setting loss: expected settings below it"),
        ("loss.alpha=much", r"setting loss.alpha: input should be a valid number.*found 'much'"),
        ("loss.soft_label_source=none", "'each', 'add' or 'dot'"),
        ("train.epochs=0", r"setting train.epochs: must be at least 1, found 0"),
        ("train.seed=-1", "must be at least 0 and less than"),
        ("student.dropout=1.5", "at least 0 and less than 1, found 1.5"),
        ("optim.lr=0", "must be more than 0"),
        ("loss.alpha=-1", "must be at least 0"),
        ("loss.alpha=.nan", "setting loss.alpha"),
        ("optim.min_lr=5", "setting optim.min_lr"),
        ("loss.tau.min=0", "0 < min <= max"),
        ("loss.terms=[]", "at least one"),
        ("loss.alpha", "expected NAME=VALUE"),
        ("loss.alpha={", "not a YAML value"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(CusaError, match=message) as error:
        build_config(parse_settings([setting]))
    assert "\n" not in str(error.value)


def test_config_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("loss: {alpha: 2}\n")
    assert build_config(merge(load_config_file(path), {"loss": {"beta": 3}})).loss.alpha == 2
    for content, message in (("a: [", "not valid YAML"), ("- 1", "expected sections")):
        path.write_text(content)
        with pytest.raises(CusaError, match=message):
            load_config_file(path)
    with pytest.raises(CusaError, match="does not exist"):
        load_config_file(tmp_path / "no.yaml")
    assert yaml.safe_load(to_yaml(Config()))["loss"]["terms"] == ["contrastive", "csa", "usa"]

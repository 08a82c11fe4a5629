"""Settings of a training run: presets, files, --set; checked once, frozen ever after."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from cusa.data.errors import CusaError
from cusa.train.batches import StartMethod
from cusa.train.losses import LossConfig
from cusa.train.student import StudentConfig


@dataclass(frozen=True)
class DataConfig:
    """Where pairs and teacher rows come from.

    Attributes:
        embeddings: Path of the embedding store.
        image_root: Folder of the images, if not the store's own.
        image_teacher: Teacher of the soft labels; ``None``: the store's only one.
        text_teacher: Same for captions.
        train_split: Split that is trained on.
        val_split: Split that the best checkpoint is chosen on.
        normalizer: Caption normaliser of a Hugging Face student.
    """

    embeddings: str = ""
    image_root: str | None = None
    image_teacher: str | None = None
    text_teacher: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    normalizer: Literal["albef", "none"] = "albef"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Peak learning rate.
        min_lr: Learning rate at the end of the cosine.
        weight_decay: Decay of weight matrices; biases, LayerNorms and temperatures have none.
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        eps: AdamW's epsilon.
        warmup_epochs: Epochs of linear warm-up, counted within ``epochs``.
        grad_clip: Largest gradient norm; 0: no clipping.
    """

    lr: float = 1e-5
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_epochs: float = 0.0
    grad_clip: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
        epochs: Passes over the captions.
        batch_size: Pairs per step of one process.
        accumulate: Gradient accumulation: a step takes so many times ``batch_size`` pairs, whose activations are in
            memory ``batch_size`` at a time; the loss is that of all of them together.
        micro_batch: Pairs whose activations are in memory at a time; the loss is still that of the whole batch, and
            the encoders run twice. ``None``: all, once.
        gather: With several processes, the loss of the batches of all of them together; otherwise, as published, each
            process has the loss of its own.
        seed: Seed of weights, order and dropout.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` autocast; the loss is always float32.
        workers: Processes that read batches; ``None``: 0 for the adapter, else the cores, at most 8.
        worker_start: How those processes begin.
        log_every: Steps between lines of metrics.jsonl.
        checkpoint_steps: Steps between checkpoints; ``None``: by time alone. Every epoch ends with one.
        checkpoint_minutes: Minutes between checkpoints; ``None``: by steps alone.
        patience: Stop after so many epochs without a better validation RSUM; ``None``: never.
        tensorboard: Whether to write TensorBoard files, too.
    """

    epochs: int = 30
    batch_size: int = 128
    accumulate: int = 1
    micro_batch: int | None = None
    gather: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int | None = None
    worker_start: StartMethod = "fork"
    log_every: int = 10
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = 10.0
    patience: int | None = None
    tensorboard: bool = False

    @property
    def pairs_per_step(self) -> int:
        """Pairs per optimizer step of one process."""
        return self.batch_size * self.accumulate

    @property
    def pairs_at_a_time(self) -> int | None:
        """Pairs whose activations are in memory at a time, where those are fewer than a step's."""
        return self.micro_batch or (self.batch_size if self.accumulate > 1 else None)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    folder = importlib.resources.files("cusa.train") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """A preset's settings, nested.

    Raises:
        CusaError: If there is none of that name; says which there are.
    """
    if name not in presets():
        raise CusaError(f"unknown preset {name!r}; legal: {', '.join(presets())}")
    text = (importlib.resources.files("cusa.train") / "presets" / f"{name}.yaml").read_text()
    return yaml.safe_load(text)


def load_config_file(path: Path) -> dict[str, Any]:
    """A YAML file's settings, nested.

    Raises:
        CusaError: If it is missing or no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise CusaError(f"config file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CusaError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise CusaError(f"{path}: expected sections such as 'train:' with settings below, as in runs/*/config.yaml")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the settings of ``over`` in place of its own, section by section."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``["loss.alpha=0.2", ...]`` as nested settings; values are YAML.

    Raises:
        CusaError: If a pair is not ``section.name=value``.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, raw = pair.partition("=")
        if not equals or not name.strip():
            raise CusaError(f"--set {pair}: expected NAME=VALUE, e.g. loss.alpha=0.2")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError:
            raise CusaError(f"--set {pair}: {raw!r} is not a YAML value") from None
        for part in reversed(name.strip().split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def build_config(settings: Mapping[str, Any]) -> Config:
    """Check nested settings and freeze them.

    Raises:
        CusaError: If a name is unknown (says the legal ones) or a value is illegal.
    """
    from pydantic import TypeAdapter, ValidationError

    defaults = dataclasses.asdict(Config())
    _check_names(settings, defaults, "")
    try:
        config = TypeAdapter(Config).validate_python(_floats(merge(defaults, settings)))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # ours, which says what was found
            raise CusaError(f"setting {name}: {first['ctx']['error']}") from None
        raise CusaError(f"setting {name}: {first['msg'].lower()}, found {first['input']!r}") from None
    _check_values(config)
    return config


def _check_names(settings: Any, legal: Any, prefix: str) -> None:
    if not isinstance(legal, Mapping):
        return
    if not isinstance(settings, Mapping):
        raise CusaError(f"setting {prefix.rstrip('.')}: expected settings below it: {', '.join(legal)}")
    for key, value in settings.items():
        if key not in legal:
            raise CusaError(f"unknown setting {prefix}{key}; legal: {', '.join(prefix + k for k in legal)}")
        _check_names(value, legal[key], f"{prefix}{key}.")


def _floats(value: Any) -> Any:
    """YAML 1.1 reads ``1e-5`` as text; a text that is a number in that form becomes one."""
    if isinstance(value, Mapping):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, str) and value[:1] in "0123456789-+." and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_values(config: Config) -> None:
    o, t, student = config.optim, config.train, config.student
    ranges: dict[str, tuple[float, float, bool, float]] = {  # value, least, whether that is legal itself, bound above
        "train.epochs": (t.epochs, 1, True, math.inf),
        "train.batch_size": (t.batch_size, 1, True, math.inf),
        "train.accumulate": (t.accumulate, 1, True, math.inf),
        "train.log_every": (t.log_every, 1, True, math.inf),
        "train.seed": (t.seed, 0, True, 2**63),
        "student.hidden_dim": (student.hidden_dim, 1, True, math.inf),
        "student.dropout": (student.dropout, 0, True, 1),
        "loss.alpha": (config.loss.alpha, 0, True, math.inf),
        "loss.beta": (config.loss.beta, 0, True, math.inf),
        "loss.contrastive_weight": (config.loss.contrastive_weight, 0, True, math.inf),
        "optim.lr": (o.lr, 0, False, math.inf),
        "optim.min_lr": (o.min_lr, 0, True, math.nextafter(o.lr, math.inf)),
        "optim.weight_decay": (o.weight_decay, 0, True, math.inf),
        "optim.beta1": (o.beta1, 0, True, 1),
        "optim.beta2": (o.beta2, 0, True, 1),
        "optim.eps": (o.eps, 0, False, math.inf),
        "optim.warmup_epochs": (o.warmup_epochs, 0, True, math.inf),
        "optim.grad_clip": (o.grad_clip, 0, True, math.inf),
    }
    optional = {
        "train.micro_batch": (t.micro_batch, 1),
        "train.workers": (t.workers, 0),
        "train.checkpoint_steps": (t.checkpoint_steps, 1),
        "train.checkpoint_minutes": (t.checkpoint_minutes, 0),
        "train.patience": (t.patience, 1),
        "student.embed_dim": (student.embed_dim, 1),
    }
    ranges |= {name: (value, least, True, math.inf) for name, (value, least) in optional.items() if value is not None}
    for name, (value, least, closed, above) in ranges.items():
        if not (least <= value if closed else least < value) or not value < above:
            bound = "" if above == math.inf else f" and less than {above:g}"
            raise CusaError(
                f"setting {name}: must be {'at least' if closed else 'more than'} {least}{bound}, found {value}"
            )


def to_yaml(config: Config) -> str:
    """The settings as a file that ``--config`` reads."""
    plain = dataclasses.asdict(config)
    plain["loss"]["terms"] = list(plain["loss"]["terms"])
    return yaml.safe_dump(plain, sort_keys=False)


# Where things lie and how they are run; the rest decides what comes out.
_FREE = {
    "data.embeddings",
    "data.image_root",
    "train.device",
    "train.workers",
    "train.worker_start",
    "train.log_every",
    "train.checkpoint_steps",
    "train.checkpoint_minutes",
    "train.patience",
    "train.tensorboard",
    "train.micro_batch",  # rounding and dropout masks, as the device does
}


def differing(a: Config, b: Config) -> list[str]:
    """Names of the settings that differ, with both values; those that do not decide what a run computes left out."""
    one, two = deciding(a), deciding(b)
    return [f"{name} ({one[name]!r} / {two[name]!r})" for name in one if one[name] != two[name]]


def deciding(config: Config) -> dict[str, Any]:
    """The settings that decide what a run computes, by full name."""
    return {name: value for name, value in _flat(dataclasses.asdict(config), "") if name not in _FREE}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, part in value.items():
        yield from _flat(part, f"{name}.{key}" if name else key)

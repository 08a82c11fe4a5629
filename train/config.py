"""Settings of a training run, from presets, files and ``--set``: checked once, then frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from cusa.data.errors import FileFormatError, SettingError
from cusa.data.worker_pool import StartMethod
from cusa.data.yaml_files import parse_yaml, read_yaml
from cusa.train.loss.config import LossConfig
from cusa.train.settings import (
    Field,
    Flag,
    Number,
    Text,
    WholeNumber,
    settings,
    shortened,
    validate,
)
from cusa.train.student import StudentConfig

GREATEST_BATCH = 1_000_000
GREATEST_SEED = 2**63 - 1
GREATEST_NORM = 1_000_000_000  # that gradients are clipped to
MOST_EPOCHS = 1_000_000
MOST_STEPS = 1_000_000_000
MOST_WORKERS = 256  # processes that read for one training process
GREATEST_CACHE = 1_000_000  # GB
MINUTES_OF_A_YEAR = 525_600

TrackerName = Literal["wandb", "trackio", "mlflow", "tensorboard"]
_MOST_BYTES = 1_000_000  # in a file of settings
_MOST_DOTS = 8  # in a setting's full name; no setting has as many


# Short names of settings, for options and for the axes of a sweep. A loss is named by its key in
# TERMS.
SHORT = {
    "loss": "loss.terms",
    "seed": "train.seed",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "warmup": "optim.warmup_epochs",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "student": "student.name",
    "init": "student.init",
    "image_teacher": "data.image_teacher",
    "text_teacher": "data.text_teacher",
    "image_encoder": "student.image_encoder",
    "text_encoder": "student.text_encoder",
}


@settings
class DataConfig:
    """Where pairs and teacher rows come from.

    Attributes:
        embeddings: Path of the embedding store.
        val_embeddings: Path of another store, whose ``val_split`` is validated on, and which
            ``cusa-eval`` measures the run on; ``None``: the same store.
        image_root: Folder of the images, if not the store's own.
        val_image_root: Folder of the images of ``val_embeddings``, if not that store's own.
        image_teacher: Teacher of the images' soft labels; ``None``: the store's only one.
        text_teacher: Teacher of the captions' soft labels; ``None``: the store's only one.
        train_split: Split that is trained on.
        val_split: Split that the best student is chosen on. ``None``: none, and the last student
            is kept; so, with a note, where the only store has no split of the default name.
        normalizer: Caption normaliser of a Hugging Face student.
        window: Of a set of tars, how many tars the pairs of a stream are drawn from at a time.
        streams: Of a set of tars, the streams of each process: places of the shuffled tars that
            it reads at once, each in windows of its own.
        mix_streams: Of a set of tars, whether each batch is drawn from all streams, rather than
            from one after the other.
        cache: Of a set of tars, a folder of this machine for copies of the tars and rows that come
            next, which batches are then read from. ``None``: what is on this machine is read where
            it is, and what is in an object store is copied to a temporary folder.
        cache_gb: Copies that are not in use any more stay in that folder, for the next epoch, other
            runs and ``--resume``, while all have at most so many GB.
    """

    embeddings: Text = ""
    val_embeddings: Text | None = None
    image_root: Text | None = None
    val_image_root: Text | None = None
    image_teacher: Text | None = None
    text_teacher: Text | None = None
    train_split: Text = "train"
    val_split: Text | None = "val"
    normalizer: Literal["albef", "none"] = "albef"
    window: WholeNumber = Field(default=8, ge=1, le=1_000_000)
    streams: WholeNumber = Field(default=1, ge=1, le=1024)
    mix_streams: Flag = True
    cache: Text | None = None
    cache_gb: Number = Field(default=10.0, ge=0, le=GREATEST_CACHE)


@settings
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Peak learning rate.
        min_lr: Learning rate at the end of the cosine.
        weight_decay: Decay of weight matrices; biases, LayerNorms and temperatures have none.
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        eps: AdamW's epsilon.
        warmup_epochs: Epochs of linear warm-up, counted within the run.
        warmup_steps: Steps of linear warm-up; ``None``: ``warmup_epochs`` decides.
        schedule: When the learning rate changes: at every ``"step"`` or, as published, at every
            ``"epoch"``; see :func:`cusa.train.schedule.learning_rate`.
        schedule_epochs: Epochs that the cosine takes; later ones have ``min_lr``. ``None``: all.
        schedule_steps: The same in steps; at most one of the two.
        grad_clip: Largest gradient norm; 0: no clipping, as published.
    """

    lr: Number = Field(default=1e-5, gt=0, le=100)
    min_lr: Number = Field(default=1e-6, ge=0, le=100)
    weight_decay: Number = Field(default=1e-4, ge=0, le=1000)
    beta1: Number = Field(default=0.9, ge=0, lt=1)
    beta2: Number = Field(default=0.999, ge=0, lt=1)
    eps: Number = Field(default=1e-8, gt=0, le=1)
    warmup_epochs: Number = Field(default=0.0, ge=0, le=MOST_EPOCHS)
    warmup_steps: WholeNumber | None = Field(default=None, ge=0, le=MOST_STEPS)
    schedule: Literal["step", "epoch"] = "step"
    schedule_epochs: WholeNumber | None = Field(default=None, ge=1, le=MOST_EPOCHS)
    schedule_steps: WholeNumber | None = Field(default=None, ge=1, le=MOST_STEPS)
    grad_clip: Number = Field(default=1.0, ge=0, le=GREATEST_NORM)

    def __post_init__(self) -> None:
        """Refuse a cosine that would rise, and a length that is given in epochs and in steps."""
        if self.min_lr > self.lr:
            raise SettingError(
                f"must be at most optim.lr, {self.lr:g}; got {self.min_lr:g}: lower it, too, with "
                "--set optim.min_lr=NUMBER",
                name="min_lr",
            )
        if self.warmup_epochs and self.warmup_steps is not None:
            raise _two_lengths("warmup_steps", self.warmup_steps, "optim.warmup_epochs")
        if self.schedule_epochs is not None and self.schedule_steps is not None:
            raise _two_lengths("schedule_steps", self.schedule_steps, "optim.schedule_epochs")


def _two_lengths(name: str, steps: int, in_epochs: str) -> SettingError:
    return SettingError(
        f"cannot be {steps:,} beside {in_epochs}: they give the same length; leave out one",
        name=name,
    )


@settings
class TrainConfig:
    """The loop.

    Attributes:
        epochs: Passes over the captions; ``None`` where ``steps`` is given.
        steps: Optimizer steps of the whole run, instead of ``epochs``.
        validate_every: Steps between validations; ``None``: each epoch ends with one. The last step
            is followed by one, too.
        batch_size: Pairs per step of one process.
        accumulate: Gradient accumulation: a step takes so many times ``batch_size`` pairs, whose
            activations are in memory ``batch_size`` at a time; the loss is that of all of them
            together.
        micro_batch: Pairs whose activations are in memory at a time; the loss is still that of the
            whole batch, and the encoders run twice. ``None``: all, once.
        gather: With several processes, the loss of the batches of all of them together; otherwise,
            as published, each process has the loss of its own.
        seed: Seed of weights, order and dropout.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` autocast; the loss is always float32.
        workers: Processes that read batches; ``None``: 0 for the adapter, else the cores, at most
            8.
        worker_start: How those processes begin.
        log_every: Steps between lines of metrics.jsonl.
        checkpoint_steps: Steps between checkpoints; ``None``: by time alone. Every validation ends
            with one.
        checkpoint_minutes: Minutes between checkpoints; ``None``: by steps alone.
        patience: Stop after so many validations without a better RSUM; ``None``: never.
        report_to: Trackers that show the run: ``"wandb"``, ``"trackio"``, ``"mlflow"``,
            ``"tensorboard"``; none by default.
        project: Project, or experiment in MLflow, that they show it in; ``None``: that of their
            environment variable, or else cusa.
    """

    epochs: WholeNumber | None = Field(default=30, ge=1, le=MOST_EPOCHS)
    steps: WholeNumber | None = Field(default=None, ge=1, le=MOST_STEPS)
    validate_every: WholeNumber | None = Field(default=None, ge=1, le=MOST_STEPS)
    batch_size: WholeNumber = Field(default=128, ge=1, le=GREATEST_BATCH)
    accumulate: WholeNumber = Field(default=1, ge=1, le=GREATEST_BATCH)
    micro_batch: WholeNumber | None = Field(default=None, ge=1, le=GREATEST_BATCH)
    gather: Flag = False
    seed: WholeNumber = Field(default=0, ge=0, le=GREATEST_SEED)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: WholeNumber | None = Field(default=None, ge=0, le=MOST_WORKERS)
    worker_start: StartMethod = "fork"
    log_every: WholeNumber = Field(default=10, ge=1, le=MOST_STEPS)
    checkpoint_steps: WholeNumber | None = Field(default=None, ge=1, le=MOST_STEPS)
    checkpoint_minutes: Number | None = Field(default=10.0, ge=0, le=MINUTES_OF_A_YEAR)
    patience: WholeNumber | None = Field(default=None, ge=1, le=MOST_EPOCHS)
    report_to: tuple[TrackerName, ...] = ()
    project: Annotated[Text, Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        """Refuse a run without a length or with two, and a tracker that is given twice."""
        if self.epochs is None and self.steps is None:
            raise SettingError("must be a number where train.steps is not given", name="epochs")
        if self.epochs is not None and self.steps is not None:
            raise _two_lengths("steps", self.steps, f"train.epochs, {self.epochs:,}")
        if len(set(self.report_to)) < len(self.report_to):
            raise SettingError(
                f"must name each tracker at most once, got {list(self.report_to)}", name="report_to"
            )

    @property
    def counts_steps(self) -> bool:
        """Return whether steps rather than epochs tell how long the run is or when it validates."""
        return self.steps is not None or self.validate_every is not None

    @property
    def pairs_per_step(self) -> int:
        """Return the pairs that one process takes per optimizer step."""
        return self.batch_size * self.accumulate

    @property
    def pairs_at_a_time(self) -> int | None:
        """Return how many pairs are encoded at a time; ``None``: all pairs of a step."""
        if self.micro_batch is not None:
            return self.micro_batch
        if self.accumulate > 1:
            return self.batch_size
        return None


@settings
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML file's settings, nested.

    Raises:
        FileFormatError: If the file is missing, larger than 1 MB, or not a YAML mapping.
    """
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise FileFormatError(
            f"{path} is too large for a file of settings; pass another",
            path=path,
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{path} holds no settings; expected sections such as 'train:' with settings below, "
            "as in runs/*/config.yaml",
            path=path,
        )
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Override the settings of ``base`` with those of ``over``, section by section."""
    merged = dict(base)
    for key, value in over.items():
        base_value = merged.get(key)
        if isinstance(base_value, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(base_value, value)
        else:
            merged[key] = value
    return merged


# Lengths that can be given in epochs or in steps, and their values where they are not given.
_IN_TWO_UNITS = (
    ("train", {"epochs": None, "steps": None}),
    ("optim", {"warmup_epochs": 0.0, "warmup_steps": None}),
    ("optim", {"schedule_epochs": None, "schedule_steps": None}),
)


def override(
    base: Mapping[str, Any],
    over: Mapping[str, Any],
) -> dict[str, Any]:
    """Merge settings over weaker ones; a length replaces the same length in the other unit."""
    merged = merge(base, over)
    for section, lengths in _IN_TWO_UNITS:
        given = over.get(section)
        if not isinstance(given, Mapping):
            continue
        replaced = {name: none for name, none in lengths.items() if name not in given}
        if any(given.get(name) is not None for name in lengths):
            merged = merge(merged, {section: replaced})
    return merged


def refuse_hidden(
    under: Mapping[str, Any],
    over: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Refuse settings that give a value where others have a section: merging would drop the value.

    Args:
        under: Nested settings.
        over: Nested settings to be merged over them.
        prefix: Full name of the section that both are in, with a dot behind it.

    Raises:
        SettingError: If there is such a value; ``name`` is its full name.
    """
    for name, value in over.items():
        hidden = under.get(name)
        if not isinstance(value, Mapping) or hidden is None:
            continue
        if not isinstance(hidden, Mapping):
            full_name = f"{prefix}{name}"
            value_text = shortened(repr(hidden))
            raise SettingError(
                f"setting {full_name} must be settings below it, got {value_text}", name=full_name
            )
        refuse_hidden(hidden, value, f"{prefix}{name}.")


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``["loss.alpha=0.2", ...]`` as nested settings; values are YAML.

    Raises:
        SettingError: If a pair is not ``section.name=value``, or one gives a value to what is a
            section in another.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, raw = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise SettingError(
                f"--set {shortened(pair)}: expected NAME=VALUE, e.g. loss.alpha=0.2",
                name=name,
            )
        try:
            value = parse_yaml(raw, f"--set {shortened(pair)}")
        except FileFormatError as error:
            raise SettingError(str(error), name=name) from None
        refuse_hidden(nested, nest(name, value))
        nested = merge(nested, nest(name, value))
    return nested


def nest(name: str, value: Any) -> dict[str, Any]:
    """Nest a value under a setting's full name: ``{"loss": {"alpha": 0.2}}``.

    Raises:
        SettingError: If the name has more sections than any setting.
    """
    if name.count(".") >= _MOST_DOTS:
        raise SettingError(
            f"unknown setting {shortened(name)}; expected one such as loss.tau.init",
            name=name,
        )
    for section in reversed(name.split(".")):
        value = {section: value}
    return value


def build_config(settings: Mapping[str, Any]) -> Config:
    """Check nested settings and freeze them.

    Raises:
        SettingError: If a name is unknown or a value illegal; the message says what is legal, and
            ``name`` is the setting's full name.
    """
    return validate(Config, override(dataclasses.asdict(Config()), _with_report_to(settings)))


def _with_report_to(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read ``train.tensorboard``, which the settings of earlier runs have, as ``report_to``.

    Trackers that are named as well take precedence.
    """
    train = settings.get("train")
    if not isinstance(train, Mapping) or "tensorboard" not in train:
        return settings
    train = dict(train)
    if train.pop("tensorboard"):
        train.setdefault("report_to", ["tensorboard"])
    return {**settings, "train": train}


def to_yaml(config: Config) -> str:
    """Write the settings as a file that ``--config`` reads."""
    plain = dataclasses.asdict(config)
    plain["loss"]["terms"] = list(plain["loss"]["terms"])
    plain["train"]["report_to"] = list(plain["train"]["report_to"])
    return yaml.safe_dump(plain, sort_keys=False)


# Settings that may change when a run resumes: paths, devices, logging. All others decide what the
# run computes.
_FREE = {
    "data.embeddings",
    "data.val_embeddings",
    "data.image_root",
    "data.val_image_root",
    "data.cache",
    "data.cache_gb",
    "train.device",
    "train.workers",
    "train.worker_start",
    "train.log_every",
    "train.checkpoint_steps",
    "train.checkpoint_minutes",
    "train.patience",
    "train.report_to",
    "train.project",
    "train.micro_batch",  # changes rounding and dropout masks, but so does the device
}


def differing(a: Config, b: Config) -> list[str]:
    """List the settings that decide what a run computes and that differ, each with both values."""
    values_of_b = deciding(b)
    differences = []
    for name, value in deciding(a).items():
        if value != values_of_b[name]:
            differences.append(f"{name} ({value!r} / {values_of_b[name]!r})")
    return differences


def deciding(config: Config) -> dict[str, Any]:
    """Return the settings that decide what a run computes, by their full names; lists for tuples.

    So they are equal to what is read from a JSON file of them.
    """
    values: dict[str, Any] = {}
    for name, value in by_full_name(dataclasses.asdict(config)).items():
        if name not in _FREE:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def by_full_name(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by their full names, such as ``"loss.alpha"``."""
    return dict(_by_full_name(nested, ""))


def _by_full_name(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, nested in value.items():
        yield from _by_full_name(nested, f"{name}.{key}" if name else key)

"""The settings of a training run: their defaults, legal values and meanings."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

from cusa.data.errors import SettingError
from cusa.data.worker_pool import StartMethod
from cusa.train.loss.config import LossConfig
from cusa.train.settings import Field, Flag, Number, Text, WholeNumber, settings
from cusa.train.student_config import StudentConfig

GREATEST_BATCH = 1_000_000
GREATEST_SEED = 2**63 - 1
GREATEST_NORM = 1_000_000_000  # that gradients are clipped to
MOST_EPOCHS = 1_000_000
MOST_STEPS = 1_000_000_000
MOST_WORKERS = 256  # processes that read for one training process
GREATEST_CACHE = 1_000_000  # GB
MINUTES_OF_A_YEAR = 525_600


def _one_or_several(names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """Return a list of one name as that name, an empty one as none given, ``"a+b"`` as a list."""
    if isinstance(names, str):
        names = (names,)
    # A plus is not legal in a name.
    each_name = tuple("+".join(names or ()).split("+"))
    if len(each_name) == 1:
        return each_name[0] or None
    return each_name


_LEGAL_NAMES = "a teacher's name (in quotes where it looks like a number), a list of them, or null"
# One name or several; ``None``: the default.
Names = Annotated[
    Text | tuple[Text, ...] | None,
    AfterValidator(_one_or_several),
    WithJsonSchema({"legal": _LEGAL_NAMES}),
]
TrackerName = Literal["wandb", "trackio", "mlflow", "tensorboard"]


@settings
class DataConfig:
    """Where pairs and teacher rows come from.

    Attributes:
        embeddings: Path of the embedding store, or path or URL of a set of tars.
        val_embeddings: Path of another store, whose ``val_split`` is validated on, and which
            ``cusa-eval`` measures the run on; ``None``: the same store.
        image_root: Folder of the images if not the store's own; of a set's tars, also a URL.
        val_image_root: Folder of the images of ``val_embeddings``, if not that store's own.
        image_teacher: Teacher of the images' soft labels, or a list of several (in the axes of
            ``--sweep``: ``a+b``); ``None``: the store's only one, or its only one that is not half
            of a cross-modal teacher.
        text_teacher: Teacher of the captions' soft labels, likewise.
        cross_teacher: Cross-modal teacher, or a list of several, for rules and soft labels that
            compare images with captions; ``None``: the store's only one, if the loss needs one.
        train_split: Split that is trained on.
        val_split: Split that the best student is chosen on. ``None``: none, and the last student
            is kept; so, with a note, where the only store has no split of the default name.
        normalizer: Caption normaliser of a Hugging Face student.
        window: Of a set of tars, how many tars the pairs of a stream are drawn from at a time.
        streams: Of a set of tars, the streams of each process: places of the shuffled tars that
            it reads at once, each in windows of its own.
        mix_streams: Of a set of tars, whether each batch is drawn from all streams, rather than
            from one after the other.
        cache: Of a set of tars, a folder on this machine for copies of the tars and rows that come
            next; batches are read from the copies. ``None``: what is on this machine is read where
            it is, and what is in an object store is copied to a temporary folder.
        cache_gb: GB that all copies may take together. Those that are no longer in use stay within
            this limit, for the next epoch, other runs and ``--resume``.
    """

    embeddings: Text = ""
    val_embeddings: Text | None = None
    image_root: Text | None = None
    val_image_root: Text | None = None
    image_teacher: Names = None
    text_teacher: Names = None
    cross_teacher: Names = None
    train_split: Text = "train"
    val_split: Text | None = "val"
    normalizer: Literal["albef", "none"] = "albef"
    window: WholeNumber = Field(default=8, ge=1, le=1_000_000)
    streams: WholeNumber = Field(default=1, ge=1, le=1024)
    mix_streams: Flag = True
    cache: Annotated[Text, Field(min_length=1)] | None = None
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

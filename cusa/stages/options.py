"""The options of the stages: their names are those of the command lines' flags."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from cusa.stages.kinds import (
    Count,
    Device,
    FilePath,
    LocalPath,
    Name,
    Names,
    Paths,
    Positive,
    SettingValues,
    ShardRange,
    Suite,
    TarRange,
)
from cusa.train.settings import Flag, Number, WholeNumber

# A misspelt option is refused instead of ignored.
_only_known = with_config(ConfigDict(extra="forbid"))


@_only_known
class TrainOptions(TypedDict, total=False):
    """Options of :func:`cusa.train`; ``None`` is the default.

    Attributes:
        student: ``"adapter"``, or a Hugging Face dual encoder by name or folder.
        init: A run, its ``best/``, or an export to hf whose weights and heads the student begins
            with.
        val_embeddings: Another store, whose val split is validated on, and which the run is
            evaluated on.
        image_encoder: Of a stored image tower, the store's teacher whose rows are its input.
        text_encoder: Of a stored text tower, the store's teacher whose rows are its input.
        freeze: Towers whose model is not trained: image, text or both.
        image_teacher: The store's image teacher that gives the soft labels, or several.
        text_teacher: The store's text teacher that gives the soft labels, or several.
        cross_teacher: The store's cross-modal teacher, or several, for losses that need one.
        image_root: Folder of the images, or of a set's tars, if not the store's own.
        loss: The terms to sum.
        preset: Named settings; by default, chosen by data set and student.
        config: YAML file of settings.
        settings: Any settings (``cusa-train settings`` lists them) by full name, by the name of an
            option here, or nested: ``{"epochs": 5, "loss.alpha": 0.2, "optim": {"lr": 1e-3}}``.
            Other options take precedence.
        lr: Peak learning rate.
        weight_decay: Decay of weight matrices.
        warmup: Epochs of linear warm-up.
        epochs: Passes over the captions; with ``resume``, more of them under the run's schedule.
        steps: Optimizer steps of the whole run, instead of ``epochs``.
        validate_every: Steps between validations; by default, each epoch ends with one.
        batch_size: Pairs per step on each GPU.
        accumulate: Batches per step, by gradient accumulation.
        micro_batch: Pairs to encode at a time, for batches that do not fit into memory.
        gather: With several processes: whether the loss is over all their batches together.
        precision: Precision of the autocast.
        device: Device to train on.
        workers: Processes that read batches.
        seed: Seed of weights, order and dropout.
        patience: Validations without a better RSUM after which training stops.
        checkpoint_steps: Steps between checkpoints.
        checkpoint_minutes: Minutes between checkpoints.
        report_to: Trackers that show the run, too: wandb, trackio, mlflow, tensorboard.
        run_dir: The run's directory; by default ``runs/DATASET-STUDENT-LOSS-seedN-TIME``.
        resume: Whether to resume from the last checkpoint of ``run_dir``.
        report: Whether to evaluate the finished run as ``cusa-eval`` does, and write its report.
    """

    student: Name | None
    init: Name | None
    val_embeddings: Name | None
    image_encoder: str | None
    text_encoder: str | None
    freeze: Names | None
    image_teacher: Names | None
    text_teacher: Names | None
    cross_teacher: Names | None
    image_root: Name | None
    loss: Literal["contrastive", "csa", "usa", "cusa", "rule"] | None
    preset: str | None
    config: LocalPath | None
    settings: SettingValues | None
    lr: Number | None
    weight_decay: Number | None
    warmup: Number | None
    epochs: WholeNumber | None
    steps: WholeNumber | None
    validate_every: WholeNumber | None
    batch_size: WholeNumber | None
    accumulate: WholeNumber | None
    micro_batch: WholeNumber | None
    gather: Flag | None
    precision: Literal["fp32", "bf16", "fp16"] | None
    device: Device | None
    workers: WholeNumber | None
    seed: WholeNumber | None
    patience: WholeNumber | None
    checkpoint_steps: WholeNumber | None
    checkpoint_minutes: Number | None
    report_to: Names | None
    run_dir: LocalPath | None
    resume: Flag | None
    report: Flag | None


@_only_known
class ColumnOptions(TypedDict, total=False):
    """Names of a data set's columns, where they are not among the usual ones."""

    image_column: str | None
    caption_column: str | None
    id_column: str | None
    split_column: str | None


@_only_known
class TeacherOptions(TypedDict, total=False):
    """How teachers run, over a data set or over tars."""

    teacher: Names | None
    out: FilePath | None
    data_root: LocalPath | None
    device: Device | None
    precision: Literal["auto", "fp32", "fp16", "bf16"] | None
    batch_size: Positive | None
    workers: Count | None
    dtype: Literal["float16", "float32"] | None
    normalizer: Literal["albef", "none"] | None
    pooling: Literal["cls", "mean", "pooler"] | None
    on_error: Literal["fail", "skip"] | None


@_only_known
class PrecomputeOptions(TeacherOptions, ColumnOptions, total=False):
    """Options of :func:`cusa.precompute`; ``None`` is the default.

    Attributes:
        teacher: One or several teachers: known ones, Hugging Face vision or sentence-transformers
            models by name or folder, or ``NAME=PATH`` (docs/teachers.md). A modality without a
            teacher gets unicom or mpnet.
        image_column: Column of the images' paths.
        caption_column: Column of the captions.
        id_column: Column of the images' ids.
        split_column: Column of the splits.
        out: The store's index file; by default, ``DATA_ROOT/NAME_teachers.h5``.
        image_root: Folder that image paths are relative to.
        data_root: Folder of the named data sets; by default, data.
        splits: Only these splits.
        limit: Only the first images of each split, so many.
        val_fraction: Share of the training images that becomes val if the data set has no val
            split; 0: none. By default, as in the store, or 0.1 and at most 5,000 images.
        device: Device that teachers compute on.
        precision: Precision that they compute in; by default, fp16 on a GPU, fp32 elsewhere.
        batch_size: Items per forward pass; by default, by teacher and device.
        workers: Processes that decode images; by default, the cores, at most 16.
        shard_rows: Rows per shard; by default, the store's own, or 16,384.
        shard_range: Only these shards: the first, and the one after the last.
        dtype: Dtype of the stored rows, float16 by default.
        normalizer: Caption normaliser, albef by default.
        pooling: What becomes the row of a Hugging Face vision model; by default, the best that it
            has.
        check_pictures: Whether rows of an earlier version are kept, if its decoding would have
            given the same for every picture.
        on_error: On an unreadable image, an empty caption, or an item whose row would be zero:
            ``"fail"`` (the default) stops, ``"skip"`` records it as skipped.
        reuse: Another store, whose rows of the same pictures, captions and settings are reused.
    """

    image_root: FilePath | None
    splits: Names | None
    limit: Positive | None
    val_fraction: Annotated[Number, Field(ge=0, lt=1)] | None
    shard_rows: Positive | None
    shard_range: ShardRange | None
    check_pictures: Flag | None
    reuse: LocalPath | None


@_only_known
class TarOptions(TeacherOptions, total=False):
    """Options of :func:`cusa.precompute_tars`; ``None`` is the default.

    Attributes:
        teacher: One or several teachers, as for :func:`cusa.precompute`.
        out: The folder of the set, or its URL in an object store; by default,
            ``DATA_ROOT/NAME_teachers``, with the name of the tars' folder.
        data_root: Folder of that default; by default, data.
        caption: Where captions are: ``"txt"`` (the default), or ``"json:FIELD"`` for a field of the
            sample's .json file, a text or a list of texts; of Parquet files, ``"parquet:COLUMN"``,
            by default ``"parquet:caption"``.
        on_tar: On a damaged tar: ``"fail"`` (the default) stops, ``"skip"`` leaves it out,
            ``"keep"`` keeps its whole samples.
        tars: Only these tars, sorted by name: the first, and the one after the last. By default, in
            a job array of Slurm, this job's share; else all.
        device: Device that teachers compute on.
        precision: Precision that they compute in; by default, fp16 on a GPU, fp32 elsewhere.
        batch_size: Items per forward pass; by default, by teacher and device.
        workers: Processes that decode images; by default, the cores, at most 16.
        dtype: Dtype of the stored rows, float16 by default.
        normalizer: Caption normaliser, albef by default.
        pooling: What becomes the row of a Hugging Face vision model; by default, the best that it
            has.
        on_error: On an unreadable image, or an item whose row would be zero: ``"fail"`` (the
            default) stops, ``"skip"`` records it as skipped.
        engine: ``"local"`` (the default) makes the tars in this process, or in those of torchrun;
            ``"ray"`` in actors of a cluster of Ray, one on each device.
        ray_address: The cluster: ``"auto"`` on one of its nodes, or ``"HOST:PORT"``; by default,
            that of ``RAY_ADDRESS``, or a Ray that is started on this machine for this run.
    """

    caption: str | None
    on_tar: Literal["fail", "skip", "keep"] | None
    tars: TarRange | None
    engine: Literal["local", "ray"] | None
    ray_address: str | None


@_only_known
class EvaluateOptions(ColumnOptions, total=False):
    """Options of :func:`cusa.evaluate`; ``None`` is the default.

    Attributes:
        suite: What to measure: retrieval across modalities and among captions (the default), image
            sets by class, sentence similarity, or all for which there are data.
        image_embeddings: File of another model's image embeddings: .npy, .h5 or .safetensors.
        image_ids: Their ids, if the file has none: .txt, .json or .npy.
        text_embeddings: File of its text embeddings.
        text_ids: Their ids.
        scores: File of a matrix [images, captions] of scores of a model that gives no embeddings:
            .npy, .h5 or .safetensors, in the split's order or with ``image_ids`` and ``text_ids``.
        name: Name of that model in tables and below ``runs/eval``; by default, the files'.
        split: Split of the store or data set; by default, test.
        dataset: What :func:`cusa.load_dataset` takes; by default, the run's store.
        image_column: Column of the images' paths.
        caption_column: Column of the captions.
        id_column: Column of the images' ids.
        split_column: Column of the splits.
        embeddings: Another store than the run's own.
        image_root: Folder of the images, if not the data's own.
        data_root: Folder of the named data sets; by default, data.
        data: Image sets, each NAME=FOLDER or FOLDER (suite images), or the folder of the STS sets
            (suite sts); by default, those below ``data_root``.
        ties: How equal similarities count; by default, against the model.
        bootstrap: Resamplings of the queries for 95 % intervals, 1000 by default; 0: none.
        seed: Seed of the resampling, and of the choice of queries to show.
        allow_partial: Whether known data sets that are incomplete are evaluated, too.
        checkpoint: Checkpoint of runs; by default, the best.
        device: Device that models compute on.
        batch_size: Items per batch, 256 by default.
        workers: Processes that read inputs; by default, the cores, at most 8.
        pmrp: Folder of pm_*.json: plausible matches of COCO's test split.
        judgements: Files of people's judgements of the split's pairs.
        gallery: Queries of each task to show in the report, 6 by default.
        out: Folder of report.html; by default, the model's own results or, for several models,
            ``eval/`` beside them.
        latex: Whether to write tables.tex beside the report, too.
    """

    suite: Suite | None
    image_embeddings: LocalPath | None
    image_ids: LocalPath | None
    text_embeddings: LocalPath | None
    text_ids: LocalPath | None
    scores: LocalPath | None
    name: str | None
    split: str | None
    dataset: Any
    embeddings: FilePath | None
    image_root: FilePath | None
    data_root: LocalPath | None
    data: Names | None
    ties: Literal["pessimistic", "mean", "optimistic"] | None
    bootstrap: Count | None
    seed: Count | None
    allow_partial: Flag | None
    checkpoint: Literal["best", "last"] | None
    device: Device | None
    batch_size: Positive | None
    workers: Count | None
    pmrp: LocalPath | None
    judgements: Paths | None
    gallery: Count | None
    out: LocalPath | None
    latex: Flag | None


@_only_known
class TrainArguments(TrainOptions, total=False):
    """All arguments of :func:`cusa.train` but ``progress``."""

    embeddings: FilePath | None

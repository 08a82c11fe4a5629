"""The request for an evaluation; its fields are the options of ``cusa-eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cusa.data.readers.columns import USUAL_COLUMNS, ColumnNames
from cusa.eval.metrics.metric_options import DEFAULT_SCORING, Scoring
from cusa.eval.models.embedding_providers import EmbeddingFile
from cusa.eval.models.evaluated_models import ComputeOptions
from cusa.eval.models.scores import ScoreFile


@dataclass(frozen=True)
class MeasureOptions:
    """How every suite measures.

    Attributes:
        scoring: The rule for ties, and the bootstrap.
        allow_partial: Whether to evaluate incomplete data sets, too, whose sizes are not the
            published ones.
        n_shown: Number of queries per task that the report shows with their hits.
    """

    scoring: Scoring = DEFAULT_SCORING
    allow_partial: bool = False
    n_shown: int = 0


@dataclass(frozen=True)
class SplitRequest:
    """The split that retrieval is measured on.

    Attributes:
        split: Name of the split.
        dataset: What :func:`cusa.data.datasets.load_dataset` takes; ``None`` for the split of a
            store.
        data_root: Folder of the data sets that are given by name.
        embeddings: The store to use instead of the run's own; ``None`` for the run's own.
        image_root: Folder of the images; ``None`` for the folder that the data name.
        columns: Names of the data set's columns.
    """

    split: str
    dataset: Any
    data_root: Path
    embeddings: Path | None
    image_root: Path | None
    columns: ColumnNames = USUAL_COLUMNS


@dataclass(frozen=True)
class EvalRequest:
    """What to measure, and how.

    Attributes:
        suites: Names of the suites to run.
        skip_absent: Whether to leave out a suite without data, with a note, instead of refusing.
        models: The models, as :func:`cusa.eval.models.any_model.load_encoder` takes them.
        embedding_files: Files of another model's image and text embeddings.
        name: Name of that model; ``None`` for the names of its files.
        score_file: File of the scores of a model that gives no embeddings.
        split: The split that retrieval is measured on.
        image_sets: Image sets, each ``NAME=FOLDER`` or ``FOLDER``; empty for all known ones below
            the data root.
        sts_folder: Folder of the STS data; ``None`` for ``sts`` in the data root.
        judgement_files: Files of human judgements of the split's images and captions.
        pmrp: Folder of COCO's plausible matches, or ``None``.
        options: How every suite measures.
        compute: How embeddings are computed.
        out: Folder of the report; ``None`` for the default beside the results.
        latex: Whether to write the tables for LaTeX, too.
    """

    suites: tuple[str, ...]
    skip_absent: bool
    models: tuple[str, ...]
    embedding_files: tuple[EmbeddingFile | None, EmbeddingFile | None]
    name: str | None
    split: SplitRequest
    image_sets: tuple[str, ...]
    sts_folder: Path | None
    pmrp: Path | None
    options: MeasureOptions
    compute: ComputeOptions
    out: Path | None
    latex: bool
    judgement_files: tuple[Path, ...] = ()
    score_file: ScoreFile | None = None

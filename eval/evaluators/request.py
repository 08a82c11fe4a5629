"""What an evaluation is asked for; the fields are the options of ``cusa-eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cusa.data.readers.columns import USUAL_COLUMNS, ColumnNames
from cusa.eval.metrics.metric_options import DEFAULT_SCORING, Scoring
from cusa.eval.models.embedding_providers import EmbeddingFile
from cusa.eval.models.evaluated_models import ComputeOptions


@dataclass(frozen=True)
class MeasureOptions:
    """How every suite measures.

    Attributes:
        scoring: Ties, and the bootstrap.
        allow_partial: Whether data sets of other sizes than the known ones are evaluated, too.
        n_shown: Queries of each task that the report shows with their hits.
    """

    scoring: Scoring = DEFAULT_SCORING
    allow_partial: bool = False
    n_shown: int = 0


@dataclass(frozen=True)
class SplitRequest:
    """Which split is retrieved within.

    Attributes:
        split: Name of the split.
        dataset: A data set's name or annotation files; empty: none.
        data_root: Folder of named data sets.
        embeddings: A store, if not the run's own.
        image_root: Folder of the images, if not the data's own.
        columns: Columns of the data set's tables that are not called as usual.
    """

    split: str
    dataset: tuple[str, ...]
    data_root: Path
    embeddings: Path | None
    image_root: Path | None
    columns: ColumnNames = USUAL_COLUMNS


@dataclass(frozen=True)
class EvalRequest:
    """What to measure, and how.

    Attributes:
        suites: Names of the evaluators to run.
        skip_absent: Whether a suite without data is left out, with a note, instead of refused.
        models: Models by name.
        embedding_files: Another model's image and text embeddings, if given.
        name: That model's name; ``None``: the files'.
        split: The split that retrieval is measured on.
        image_sets: ``NAME=FOLDER`` or ``FOLDER``; empty: all below the data root.
        sts_folder: Folder of STS sets; ``None``: ``sts`` in the data root.
        judgement_files: People's judgements of the split's images and captions.
        pmrp: Folder of COCO's plausible matches, if given.
        options: How every suite measures.
        compute: How embeddings are computed.
        out: Folder of the report; ``None``: beside the results.
        latex: Whether the tables are written for LaTeX, too.
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

"""The form of metrics.json (docs/METRICS.md)."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.evaluators import forms
from cusa.eval.evaluators.protocol import ResultsFile
from cusa.eval.metrics.figures import BothWaysFigures, DirectionFigures, Figure
from cusa.eval.metrics.per_query import Ties


class CrossModalFigures(BothWaysFigures):
    """Figures of both directions; RSUM is required."""

    rsum: Figure  # type: ignore[misc] # required here


class HeadFigures(TypedDict):
    """Figures of one head."""

    retrieval: CrossModalFigures
    unimodal: dict[str, DirectionFigures]
    truth: NotRequired[dict[str, DirectionFigures] | None]
    protocols: NotRequired[dict[str, BothWaysFigures] | None]


class TeacherFigures(DirectionFigures):
    """Figures of a teacher's own rows."""

    teacher: str


class RetrievalResults(forms.Results):
    """Content of metrics.json."""

    dataset: str
    split: str
    split_fingerprint: str
    n_images: int
    n_captions: int
    n_images_skipped: NotRequired[int]
    n_captions_skipped: NotRequired[int]
    notes: NotRequired[list[str]]
    run: NotRequired[str | None]
    checkpoint: NotRequired[str | None]
    epoch: NotRequired[int | float | None]
    step: NotRequired[int | None]
    loss_terms: NotRequired[list[str]]
    ties: NotRequired[Ties]
    retrieval: CrossModalFigures
    unimodal: dict[str, DirectionFigures]
    unimodal_head: NotRequired[Head]
    heads: dict[Head, HeadFigures]
    teachers: NotRequired[dict[str, TeacherFigures]]


def _check_complete(content: RetrievalResults) -> None:
    if "cross" not in content["heads"]:
        raise ValueError("the figures of the cross head are missing")


RETRIEVAL_FILE = ResultsFile(
    name="metrics.json",
    command="cusa-eval retrieval",
    format="cusa-metrics",
    version=(1, 4),
    form=forms.form_of(RetrievalResults, _check_complete),
)

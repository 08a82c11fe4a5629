"""The form of judgements.json (docs/METRICS.md)."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.evaluators import forms
from cusa.eval.evaluators.judgements.data import JudgementKind
from cusa.eval.evaluators.protocol import ResultsFile
from cusa.eval.metrics.figures import DirectionFigures, Figure, Number
from cusa.eval.metrics.per_query import Ties


class JudgedDirection(DirectionFigures, total=False):
    """Figures of one direction, with average precision over the whole ranking."""

    average_precision: Figure


class JudgedDirections(TypedDict):
    """Figures of both directions, and the sum of their six recalls."""

    i2t: JudgedDirection
    t2i: JudgedDirection
    rsum: Figure


class Agreement(TypedDict):
    """Correlations of similarities with human scores, times 100; and retrieval by judgements."""

    kendall_tau_c: Number
    spearman: Number
    pairs: int
    retrieval: JudgedDirections


class HeadJudgements(TypedDict):
    """Figures of one head: by the labels alone, and by each kind of judgement."""

    labels: JudgedDirections
    judged: dict[JudgementKind, Agreement]


class JudgementFacts(TypedDict):
    """Facts about the judgements of one kind."""

    fingerprint: str
    pairs: int
    images: int
    captions: int
    positives: int
    positives_beyond_labels: int
    notes: list[str]


class JudgementResults(forms.Results):
    """Content of judgements.json."""

    dataset: str
    split: str
    split_fingerprint: str
    n_images: int
    n_captions: int
    ties: NotRequired[Ties]
    judgements: dict[JudgementKind, JudgementFacts]
    heads: dict[Head, HeadJudgements]


def _check_complete(content: JudgementResults) -> None:
    if "cross" not in content["heads"]:
        raise ValueError("the figures of the cross head are missing")
    for head, figures in content["heads"].items():
        if figures["judged"].keys() != content["judgements"].keys():
            raise ValueError(f"the {head} head has figures for other kinds of judgements")


JUDGEMENTS_FILE = ResultsFile(
    name="judgements.json",
    command="cusa-eval retrieval --judgements FILE",
    format="cusa-judgements",
    version=(1, 1),
    form=forms.form_of(JudgementResults, _check_complete),
)

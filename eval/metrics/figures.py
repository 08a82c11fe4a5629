"""Figures as files of results hold them, in percent; pydantic checks them against these forms."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

Number = Annotated[float, Field(allow_inf_nan=False)]
Figure = Number | None  # None: there is no query to measure it with
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]


class CurvePoints(TypedDict):
    """Recall at more cut-offs."""

    k: list[int]
    recall: list[Figure]


def _has_a_recall_for_each(curve: CurvePoints) -> CurvePoints:
    has_wrong_cut = any(k < 1 for k in curve["k"])
    if len(curve["k"]) != len(curve["recall"]) or has_wrong_cut:
        raise ValueError("k and recall are no curve")
    return curve


Curve = Annotated[CurvePoints, AfterValidator(_has_a_recall_for_each)]


class DirectionFigures(TypedDict, total=False):
    """Of one direction or one image set."""

    r1: Figure
    r5: Figure
    r10: Figure
    mean: Figure
    rsum: Figure
    r_precision: Figure
    map_at_r: Figure
    precision_at_1: Figure
    median_rank: Figure
    mean_rank: Figure
    queries: int | None
    candidates: int | None
    tied: int | None
    curve: Curve | None
    ci: dict[str, Interval]


class BothWaysFigures(DirectionFigures):
    """Of image to text and text to image, and what is a mean or a sum of both."""

    i2t: DirectionFigures
    t2i: DirectionFigures

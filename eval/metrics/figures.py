"""Types of the figures in result files, in percent; pydantic validates against them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

Number = Annotated[float, Field(allow_inf_nan=False)]
Figure = Number | None  # None where there is no query to measure it with
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]


class CurvePoints(TypedDict):
    """Recall at k, for many values of k."""

    k: list[int]
    recall: list[Figure]


def _has_a_recall_for_each(curve: CurvePoints) -> CurvePoints:
    has_illegal_cut = any(k < 1 for k in curve["k"])
    if len(curve["k"]) != len(curve["recall"]) or has_illegal_cut:
        raise ValueError("k and recall must be of one length, and every k at least 1")
    return curve


Curve = Annotated[CurvePoints, AfterValidator(_has_a_recall_for_each)]


class DirectionFigures(TypedDict, total=False):
    """Figures of one direction, or of one image set."""

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
    """Figures of image to text and text to image, and means or sums over both."""

    i2t: DirectionFigures
    t2i: DirectionFigures

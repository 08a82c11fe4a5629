"""The form of images.json (docs/METRICS.md), and the merging of results of several calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.evaluators import forms
from cusa.eval.evaluators.images.known_sets import PAPER_SETS
from cusa.eval.evaluators.protocol import ResultsFile
from cusa.eval.metrics.figures import DirectionFigures, Figure
from cusa.eval.metrics.per_query import Ties


class ImageFigures(DirectionFigures):
    """Figures of one head on one image set."""

    queries: int  # type: ignore[misc] # required here
    queries_with_positive: int
    candidates: int  # type: ignore[misc]


class ImageSetResults(TypedDict):
    """Figures of all heads on one image set, and facts about the set."""

    fingerprint: str
    classes: int
    notes: list[str]
    heads: dict[Head, ImageFigures]


class ImagesResults(forms.Results):
    """Content of images.json."""

    head: Head
    ties: NotRequired[Ties]
    sets: dict[str, ImageSetResults]
    average: dict[Head, Figure]


def average_r1(sets: Mapping[str, Any], heads: Iterable[Head]) -> dict[Head, float | None]:
    """Compute the mean R@1 over the paper's four sets by head; ``None`` if one is missing."""
    return forms.paper_averages(sets, PAPER_SETS, "r1", heads)


def _check_complete(content: ImagesResults) -> None:
    forms.check_head_in_use(content["sets"], content["head"])


def _merge(earlier: ImagesResults, content: ImagesResults) -> ImagesResults:
    """Keep the sets of an earlier call that this one did not measure."""
    sets = {**earlier["sets"], **content["sets"]}
    return {**content, "sets": sets, "average": average_r1(sets, content["average"])}


IMAGES_FILE = ResultsFile(
    name="images.json",
    command="cusa-eval images",
    format="cusa-images",
    version=(1, 1),
    form=forms.form_of(ImagesResults, _check_complete),
    data_sets="sets",
    merge=_merge,
)

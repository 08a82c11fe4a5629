"""The form of images.json (docs/METRICS.md), and how results of several calls are joined."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.evaluators.forms import (
    Results,
    is_of_a_known_version,
    mean_if_complete,
)
from cusa.eval.evaluators.protocol import ResultsFile
from cusa.eval.metrics.figures import DirectionFigures, Figure
from cusa.eval.metrics.per_query import Ties

PAPER_SETS = ("cub", "sop", "inshop", "inaturalist")


class ImageFigures(DirectionFigures):
    """Figures of one head on one image set."""

    queries: int  # type: ignore[misc] # required here
    queries_with_positive: int
    candidates: int  # type: ignore[misc]


class ImageSetResults(TypedDict):
    """Figures of all heads on one image set, and what it is."""

    fingerprint: str
    classes: int
    notes: list[str]
    heads: dict[Head, ImageFigures]


class ImagesResults(Results):
    """Content of images.json."""

    head: Head
    ties: NotRequired[Ties]
    sets: dict[str, ImageSetResults]
    average: dict[Head, Figure]


def _has_the_head_in_use(content: ImagesResults) -> ImagesResults:
    head = content["head"]
    if any(head not in of_set["heads"] for of_set in content["sets"].values()):
        raise ValueError(f"a set lacks the head {head}")
    return content


def average_r1(sets: dict[str, ImageSetResults], head: Head) -> float | None:
    """Compute the mean of R@1 over the paper's four sets; ``None`` where one is missing."""
    values = []
    for name in PAPER_SETS:
        heads = sets[name]["heads"] if name in sets else {}
        values.append(heads[head].get("r1") if head in heads else None)
    return mean_if_complete(values)


def _merge(earlier: ImagesResults, content: ImagesResults) -> ImagesResults:
    """Keep the sets of an earlier call that this one did not measure."""
    sets = {**earlier["sets"], **content["sets"]}
    average = {head: average_r1(sets, head) for head in content["average"]}
    return {**content, "sets": sets, "average": average}


IMAGES_FILE = ResultsFile(
    name="images.json",
    command="cusa-eval images",
    format="cusa-images",
    version=(1, 0),
    form=TypeAdapter(
        Annotated[
            ImagesResults,
            AfterValidator(is_of_a_known_version),
            AfterValidator(_has_the_head_in_use),
        ]
    ),
    data_sets="sets",
    merge=_merge,
)

"""The form of sts.json (docs/METRICS.md), and the merging of results of several calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator
from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.evaluators import forms
from cusa.eval.evaluators.protocol import ResultsFile
from cusa.eval.evaluators.sts.tasks import TASKS
from cusa.eval.metrics.correlation import Correlations
from cusa.eval.metrics.figures import Figure, Interval

CxcKind = Literal["sts", "sis", "sits"]


class SubsetMeans(TypedDict):
    """A correlation over all pairs, and SentEval's two means of the subsets' correlations."""

    all: Figure
    mean: Figure
    wmean: Figure


class StsScores(TypedDict):
    """Scores of one head on one task, as 100 x correlation.

    ``headline`` is the figure by the paper's rule, ``headline_rule``; ``None`` if its subset is
    missing.
    """

    headline: Figure
    headline_rule: NotRequired[str]
    spearman: SubsetMeans
    pearson: SubsetMeans
    subsets: dict[str, Correlations]
    pairs: int
    ci: NotRequired[dict[str, Interval]]


def _has_the_interval_of_its_headline(scores: StsScores) -> StsScores:
    if scores.get("ci") and "headline" not in scores["ci"]:
        raise ValueError("ci lacks the interval of the headline")
    return scores


class StsTaskResults(TypedDict):
    """Scores of all heads on one task, and facts about the task."""

    fingerprint: str
    notes: list[str]
    heads: dict[Head, Annotated[StsScores, AfterValidator(_has_the_interval_of_its_headline)]]


class CxcScores(TypedDict):
    """Scores of one head on CxC's pairs of one kind, as 100 x correlation."""

    spearman_bootstrap: Figure
    std: Figure
    spearman: Figure
    pairs: int


class CxcResults(TypedDict):
    """Scores of all heads on CxC's pairs of one kind."""

    heads: dict[Head, CxcScores]


class StsResults(forms.Results):
    """Content of sts.json."""

    head: Head
    tasks: dict[str, StsTaskResults]
    average: dict[Head, Figure]
    cxc: NotRequired[dict[CxcKind, CxcResults]]


def average_headline(
    tasks: Mapping[str, Any],
    heads: Iterable[Head],
) -> dict[Head, float | None]:
    """Compute the mean headline of the paper's seven tasks by head; ``None`` if one is missing."""
    return forms.paper_averages(tasks, TASKS, "headline", heads)


def _check_complete(content: StsResults) -> None:
    forms.check_head_in_use(content["tasks"], content["head"])


def _merge(earlier: StsResults, content: StsResults) -> StsResults:
    """Keep the tasks of an earlier call that this one did not measure."""
    tasks = {**earlier["tasks"], **content["tasks"]}
    average = average_headline(tasks, content["average"])
    merged: StsResults = {**content, "tasks": tasks, "average": average}
    if "cxc" in earlier or "cxc" in content:
        merged["cxc"] = {**earlier.get("cxc", {}), **content.get("cxc", {})}
    return merged


STS_FILE = ResultsFile(
    name="sts.json",
    command="cusa-eval sts",
    format="cusa-sts",
    version=(1, 1),
    form=forms.form_of(StsResults, _check_complete),
    data_sets="tasks",
    merge=_merge,
)

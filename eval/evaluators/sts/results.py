"""The form of sts.json (docs/METRICS.md), and how results of several calls are joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.evaluators.forms import Results, is_of_a_known_version, mean_if_complete
from cusa.eval.evaluators.protocol import ResultsFile
from cusa.eval.metrics.correlation import Correlations
from cusa.eval.metrics.figures import Figure, Interval

PAPER_TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
CxcKind = Literal["sts", "sis", "sits"]


class SubsetMeans(TypedDict):
    """A correlation over all pairs, and means of the subsets' (SentEval's)."""

    all: Figure
    mean: Figure
    wmean: Figure


class StsScores(TypedDict):
    """Scores of one head on one task, in 100 x correlation.

    ``headline`` is the paper's figure by ``headline_rule``, ``None`` where its subset is missing;
    ``wmean`` weights subsets by their pairs.
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
        raise ValueError("ci has no headline")
    return scores


class StsTaskResults(TypedDict):
    """Scores of all heads on one task, and what it is."""

    fingerprint: str
    notes: list[str]
    heads: dict[Head, Annotated[StsScores, AfterValidator(_has_the_interval_of_its_headline)]]


class CxcScores(TypedDict):
    """Scores of one head on the pairs of one kind of CxC, in 100 x correlation."""

    spearman_bootstrap: Figure
    std: Figure
    spearman: Figure
    pairs: int


class CxcResults(TypedDict):
    """Scores of all heads on one kind of CxC."""

    heads: dict[Head, CxcScores]


class StsResults(Results):
    """Content of sts.json."""

    head: Head
    tasks: dict[str, StsTaskResults]
    average: dict[Head, Figure]
    cxc: NotRequired[dict[CxcKind, CxcResults]]


def _has_the_head_in_use(content: StsResults) -> StsResults:
    head = content["head"]
    if any(head not in task["heads"] for task in content["tasks"].values()):
        raise ValueError(f"a task lacks the head {head}")
    return content


def average_headline(tasks: Mapping[str, StsTaskResults], head: Head) -> float | None:
    """Compute the mean over the paper's seven tasks; ``None`` where one is missing."""
    values = []
    for name in PAPER_TASKS:
        heads = tasks[name]["heads"] if name in tasks else {}
        values.append(heads[head]["headline"] if head in heads else None)
    return mean_if_complete(values)


def _merge(earlier: StsResults, content: StsResults) -> StsResults:
    """Keep the tasks of an earlier call that this one did not measure."""
    tasks = {**earlier["tasks"], **content["tasks"]}
    average = {head: average_headline(tasks, head) for head in content["average"]}
    merged: StsResults = {**content, "tasks": tasks, "average": average}
    if "cxc" in earlier or "cxc" in content:
        merged["cxc"] = {**earlier.get("cxc", {}), **content.get("cxc", {})}
    return merged


STS_FILE = ResultsFile(
    name="sts.json",
    command="cusa-eval sts",
    format="cusa-sts",
    version=(1, 0),
    form=TypeAdapter(
        Annotated[
            StsResults,
            AfterValidator(is_of_a_known_version),
            AfterValidator(_has_the_head_in_use),
        ]
    ),
    data_sets="tasks",
    merge=_merge,
)

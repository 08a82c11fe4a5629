"""Tables of agreement with people, and of retrieval by human judgements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from cusa.eval.evaluators.judgements.data import JudgementKind
from cusa.eval.evaluators.judgements.results import JudgementResults
from cusa.eval.evaluators.splits import split_title
from cusa.eval.report.make_tables import make_tables
from cusa.eval.report.shared_tables import (
    RECALLS,
    by_data_set,
    compared_figures,
    contents_of,
    data_set_fact,
    heads_of,
    intervals_rule,
    ties_rule,
)
from cusa.eval.report.tables import (
    TASKS,
    Group,
    Headline,
    Metric,
    NamedResult,
    Section,
    TableSpec,
)

Spec = TableSpec[JudgementResults]
SCORE_TITLES: dict[JudgementKind, str] = {
    "crowd": "Share of Yes (crowd)",
    "experts": "Mean score (experts)",
}
PEOPLE_TITLES: dict[JudgementKind, str] = {
    "crowd": "Labels and crowd",
    "experts": "Labels and experts",
}


def judgements_section(results: Sequence[NamedResult[JudgementResults]]) -> Section:
    """Make the section of human judgements."""
    contents = contents_of(results)
    specs = [
        _agreement_spec(contents),
        _retrieval_spec("i2t", contents),
        _retrieval_spec("t2i", contents),
    ]
    split = ""
    if contents:
        split = f"{contents[0]['dataset']}, split {contents[0]['split']}"
    headlines = {}
    for position, result in enumerate(results):
        if result.content is not None:
            headlines[position] = _headline(result.content)
    return Section(
        "judgements",
        "Human judgements",
        tuple(_facts(contents)),
        intervals_rule(contents),
        make_tables(results, specs, split),
        headlines=headlines,
    )


def _facts(contents: Sequence[JudgementResults]) -> Iterable[str]:
    for kind, model_results in by_data_set(contents, "judgements").items():
        first = model_results[0]
        counts = (
            f"{first['pairs']:,} pairs of {first['images']:,} images and "
            f"{first['captions']:,} captions; people call {first['positives']:,} right, "
            f"{first['positives_beyond_labels']:,} of which the labels call wrong"
        )
        title = SCORE_TITLES[cast("JudgementKind", kind)]
        yield data_set_fact(title, counts, model_results)


def _headline(content: JudgementResults) -> Headline:
    kind, agreement = next(iter(content["heads"]["cross"]["judged"].items()))
    label = f"100 × Kendall's tau-c, {SCORE_TITLES[kind].lower()}, cross head"
    return Headline(label, agreement["kendall_tau_c"])


def _agreement_spec(contents: Sequence[JudgementResults]) -> Spec:
    correlations = (Metric("kendall_tau_c", "Kendall's tau-c"), Metric("spearman", "Spearman"))
    title = _data_set(contents)
    groups = []
    for kind, score_title in SCORE_TITLES.items():
        compared = {"spearman": (f"{title} {kind}", "spearman")}
        groups.append(Group(score_title, ("judged", kind), correlations, compared=compared))
    return TableSpec(
        "Agreement with people",
        "100 × rank correlation of cosines with human scores, over all judged pairs of an image "
        "and a caption. A score is the share of people who say that the caption describes the "
        "image, or the mean of the experts' scores from 1 to 4 (Hodosh et al., JAIR 2013).",
        ("cross",),
        tuple(groups),
        heads_of,
        unit="correlation times 100, higher is better",
    )


def _data_set(contents: Sequence[JudgementResults]) -> str:
    """Return the name of the split in comparison.json; empty without results."""
    if not contents:
        return ""
    return split_title(contents[0]["dataset"], contents[0]["split"])


def _retrieval_spec(task: str, contents: Sequence[JudgementResults]) -> Spec:
    metrics = (*RECALLS, Metric("average_precision", "AP"))
    paths: dict[str, tuple[str, tuple[str, ...]]] = {"labels": ("Labels", ("labels", task))}
    for kind, title in PEOPLE_TITLES.items():
        paths[kind] = title, ("judged", kind, "retrieval", task)
    groups = []
    for protocol, (title, path) in paths.items():
        compared = compared_figures(f"{_data_set(contents)} {protocol}", task, RECALLS)
        groups.append(Group(title, path, metrics, compared=compared))
    return TableSpec(
        f"{TASKS[task]}, by labels and by people",
        "By the labels, an image and the captions written for it are right for each other. By "
        "people, pairs are right, too, if more of the crowd said Yes than No, or if the experts "
        "gave a mean score of 3 or more. AP: average precision over the whole ranking. "
        f"{ties_rule(contents)}",
        ("cross",),
        tuple(groups),
        heads_of,
    )

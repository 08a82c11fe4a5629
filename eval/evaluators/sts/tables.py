"""Tables of sentence similarity, and of CxC's similarity of captions and images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from cusa.eval.evaluators.sts.results import PAPER_TASKS, StsResults
from cusa.eval.report.make_tables import make_tables
from cusa.eval.report.shared_tables import (
    by_data_set,
    by_head_and_data_set,
    contents_of,
    data_set_fact,
    fact,
    first_scores,
    intervals_rule,
    published,
)
from cusa.eval.report.tables import (
    FiguresByHead,
    Group,
    Headline,
    Metric,
    NamedResult,
    Section,
    TableSpec,
)

Spec = TableSpec[StsResults]
BOTH_HEADS = ("cross", "uni")
# As the paper names the columns of its tables 12 and 13.
PAPER_KEYS = {
    "STS12": "sts12",
    "STS13": "sts13",
    "STS14": "sts14",
    "STS15": "sts15",
    "STS16": "sts16",
    "STSBenchmark": "stsb",
    "SICKRelatedness": "sickr",
    "average": "average",
}
SHORT_TITLES = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
CXC_TITLES = {
    "sts": "Captions (STS)",
    "sis": "Images (SIS)",
    "sits": "Images and captions (SITS)",
}


def sts_sections(results: Sequence[NamedResult[StsResults]]) -> list[Section]:
    """Make the sections of sentence similarity and of CxC."""
    contents = contents_of(results)
    names = _task_names(contents)
    of_sentences = Section(
        "sts",
        "Sentence similarity",
        tuple(_task_facts(contents)),
        intervals_rule(contents),
        make_tables(results, [_tasks_spec(names, contents)]),
        make_tables(results, [_rules_spec(names)]),
        headlines=_headlines(results),
    )
    of_cxc = Section(
        "cxc",
        "CxC: graded similarity",
        tuple(_cxc_facts(contents)),
        "",
        make_tables(results, [_cxc_spec()]),
    )
    return [of_sentences, of_cxc]


def _task_facts(contents: Sequence[StsResults]) -> Iterable[str]:
    for name, of_models in by_data_set(contents, "tasks").items():
        scores = first_scores(of_models)
        counts = f"{scores['pairs']:,} pairs"
        n_subsets = len(scores["subsets"])
        if n_subsets > 1:
            counts += f" in {n_subsets} subsets"
        yield data_set_fact(name, counts, of_models)


def _cxc_facts(contents: Sequence[StsResults]) -> Iterable[str]:
    for kind, of_models in by_data_set(contents, "cxc").items():
        yield fact(CXC_TITLES[kind], f"{first_scores(of_models)['pairs']:,} pairs", ())


def _headlines(results: Sequence[NamedResult[StsResults]]) -> dict[int, Headline]:
    """Choose the head in use: the paper's average, or else the first task."""
    headlines = {}
    for position, result in enumerate(results):
        content = result.content
        if content is None or not content["tasks"]:
            continue
        head = content["head"]
        of_what: str = "mean of the paper's seven STS tasks"
        figure = content["average"].get(head)
        if figure is None:
            of_what = next(iter(content["tasks"]))
            figure = content["tasks"][of_what]["heads"][head]["headline"]
        if figure is not None:
            headlines[position] = Headline(f"100 × Spearman, {of_what}, {head} head", figure)
    return headlines


def _task_names(contents: Sequence[StsResults]) -> list[str]:
    """All measured tasks, in the paper's order."""
    names = by_data_set(contents, "tasks")
    order = list(PAPER_TASKS)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _tasks_spec(names: Sequence[str], contents: Sequence[StsResults]) -> Spec:
    tasks = by_data_set(contents, "tasks")
    columns = [Metric("average", "Average", "the paper's seven")]
    for name in names:
        n_pairs = first_scores(tasks[name][-1:])["pairs"]
        columns.append(Metric(name, SHORT_TITLES.get(name, name), f"{n_pairs:,} pairs"))
    return TableSpec(
        "Sentence similarity by task",
        "100 × Spearman's rank correlation of cosines with people's scores, over all pairs of a "
        "task together (STS12 to STS16: its subsets joined), as in the paper.",
        BOTH_HEADS,
        (Group("100 × Spearman", ("tasks",), tuple(columns), PAPER_KEYS),),
        _headlines_by_head,
        published,
    )


def _rules_spec(names: Sequence[str]) -> Spec:
    metrics = (Metric("mean", "Mean"), Metric("wmean", "Weighted"), Metric("pearson", "Pearson"))
    return TableSpec(
        "Sentence similarity by other rules",
        "Mean of the subsets' Spearman correlations, the same weighted by their pairs, and "
        "Pearson's correlation over all pairs; each times 100.",
        BOTH_HEADS,
        tuple(Group(name, (name,), metrics) for name in names),
        _other_rules,
    )


def _cxc_spec() -> Spec:
    metrics = (
        Metric("spearman_bootstrap", "Spearman"),
        Metric("std", "± std", best="none"),
        Metric("spearman", "All pairs"),
    )
    return TableSpec(
        "CxC: captions and images",
        "100 × Spearman's correlation with people's scores, mean and standard deviation over "
        "random halves of the queries with one pair each (Parekh et al., EACL 2021); and over "
        "all pairs.",
        BOTH_HEADS,
        tuple(Group(title, (kind,), metrics) for kind, title in CXC_TITLES.items()),
        _cxc_by_head,
    )


def _headlines_by_head(content: StsResults) -> FiguresByHead:
    figures_by_head: dict[str, dict[str, Any]] = {}
    averages: dict[str, float | None] = {
        str(head): mean for head, mean in content["average"].items()
    }
    for head, scores_by_task in by_head_and_data_set(content["tasks"]).items():
        figures: dict[str, Any] = {"average": averages.get(head)}
        intervals = {}
        for name, scores in scores_by_task.items():
            figures[name] = scores["headline"]
            if scores.get("ci"):
                intervals[name] = scores["ci"]["headline"]
        figures_by_head[head] = {"tasks": {**figures, "ci": intervals}}
    return figures_by_head


def _other_rules(content: StsResults) -> FiguresByHead:
    return by_head_and_data_set(content["tasks"], _by_other_rules)


def _by_other_rules(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": scores["spearman"]["mean"],
        "wmean": scores["spearman"]["wmean"],
        "pearson": scores["pearson"]["all"],
    }


def _cxc_by_head(content: StsResults) -> FiguresByHead:
    return by_head_and_data_set(cast("Mapping[str, Any]", content.get("cxc", {})))

"""Tables of sentence similarity, and of CxC's similarity of captions and images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from cusa.data.embeddings import HEADS
from cusa.eval.evaluators.sts.results import StsResults
from cusa.eval.evaluators.sts.tasks import TASKS
from cusa.eval.report.make_tables import make_tables
from cusa.eval.report.shared_tables import (
    average_headlines,
    by_data_set,
    by_head_and_data_set,
    contents_of,
    data_set_fact,
    data_set_names,
    fact,
    first_scores,
    intervals_rule,
    published,
)
from cusa.eval.report.tables import (
    FiguresByHead,
    Group,
    Metric,
    NamedResult,
    Section,
    TableSpec,
)

Spec = TableSpec[StsResults]
_UNIT = "correlation times 100, higher is better"
SHORT_TITLES = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
CXC_TITLES = {
    "sts": "Captions (STS)",
    "sis": "Images (SIS)",
    "sits": "Images and captions (SITS)",
}


def sts_sections(results: Sequence[NamedResult[StsResults]]) -> list[Section]:
    """Make the sections of sentence similarity and of CxC."""
    contents = contents_of(results)
    names = data_set_names(contents, "tasks", TASKS)
    of_sentences = Section(
        "sts",
        "Sentence similarity",
        tuple(_task_facts(contents)),
        intervals_rule(contents),
        make_tables(results, [_tasks_spec(names, contents)]),
        make_tables(results, [_rules_spec(names)]),
        headlines=average_headlines(
            results,
            "tasks",
            Metric("headline", "100 × Spearman"),
            "mean of the paper's seven STS tasks",
            "spearman",
        ),
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
    for name, model_results in by_data_set(contents, "tasks").items():
        scores = first_scores(model_results)
        counts = f"{scores['pairs']:,} pairs"
        n_subsets = len(scores["subsets"])
        if n_subsets > 1:
            counts += f" in {n_subsets} subsets"
        yield data_set_fact(name, counts, model_results)


def _cxc_facts(contents: Sequence[StsResults]) -> Iterable[str]:
    for kind, model_results in by_data_set(contents, "cxc").items():
        yield fact(CXC_TITLES[kind], f"{first_scores(model_results)['pairs']:,} pairs", ())


def _tasks_spec(names: Sequence[str], contents: Sequence[StsResults]) -> Spec:
    tasks = by_data_set(contents, "tasks")
    columns = [Metric("average", "Average", "the paper's seven")]
    paper_keys = {"average": "average"}  # the paper's keys are sts12 to sts16, stsb and sickr
    for name in names:
        title = SHORT_TITLES.get(name, name)
        n_pairs = first_scores(tasks[name][-1:])["pairs"]
        columns.append(Metric(name, title, f"{n_pairs:,} pairs"))
        paper_keys[name] = title.replace("-", "").lower()
    compared = {name: (name, "spearman") for name in names}
    return TableSpec(
        "Sentence similarity by task",
        "100 × Spearman's rank correlation of cosines with human scores, over all pairs of a task "
        "(for STS12 to STS16, all subsets concatenated), as in the paper.",
        HEADS,
        (Group("100 × Spearman", ("tasks",), tuple(columns), paper_keys, compared),),
        _headlines_by_head,
        published,
        _UNIT,
    )


def _rules_spec(names: Sequence[str]) -> Spec:
    metrics = (Metric("mean", "Mean"), Metric("wmean", "Weighted"), Metric("pearson", "Pearson"))
    return TableSpec(
        "Sentence similarity by other rules",
        "Mean of the subsets' Spearman correlations, the same weighted by their numbers of pairs, "
        "and Pearson's correlation over all pairs; all times 100.",
        HEADS,
        tuple(Group(name, (name,), metrics) for name in names),
        _other_rules,
        unit=_UNIT,
    )


def _cxc_spec() -> Spec:
    metrics = (
        Metric("spearman_bootstrap", "Spearman"),
        Metric("std", "± std", best="none"),
        Metric("spearman", "All pairs"),
    )
    return TableSpec(
        "CxC: captions and images",
        "100 × Spearman's correlation with human scores: mean and standard deviation over random "
        "halves of the queries with one pair each (Parekh et al., EACL 2021), and the value over "
        "all pairs.",
        HEADS,
        tuple(Group(title, (kind,), metrics) for kind, title in CXC_TITLES.items()),
        _cxc_by_head,
        unit=_UNIT,
    )


def _headlines_by_head(content: StsResults) -> FiguresByHead:
    figures_by_head: dict[str, dict[str, Any]] = {}
    averages = cast("Mapping[str, float | None]", content["average"])
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

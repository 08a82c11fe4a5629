"""Tables of image retrieval by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cusa.data.embeddings import HEADS
from cusa.eval.evaluators.images.known_sets import IMAGE_SETS
from cusa.eval.evaluators.images.results import ImagesResults
from cusa.eval.report.make_tables import make_tables
from cusa.eval.report.shared_tables import (
    PRECISIONS,
    SELF_IS_NO_CANDIDATE,
    average_headlines,
    by_data_set,
    by_head_and_data_set,
    compared_figures,
    contents_of,
    data_set_fact,
    data_set_names,
    first_scores,
    intervals_rule,
    published,
    ties_rule,
)
from cusa.eval.report.tables import (
    FiguresByHead,
    Group,
    Metric,
    NamedResult,
    Section,
    TableSpec,
)

Spec = TableSpec[ImagesResults]


def images_section(results: Sequence[NamedResult[ImagesResults]]) -> Section:
    """Make the section of image retrieval."""
    contents = contents_of(results)
    names = data_set_names(contents, "sets", IMAGE_SETS)
    narrow = [_narrow_spec(names, metric, contents) for metric in PRECISIONS]
    return Section(
        "images",
        "Image retrieval",
        tuple(_facts(contents)),
        intervals_rule(contents),
        make_tables(results, [_sets_spec(names, contents)]),
        make_tables(results, [_more_recalls_spec(names)]),
        make_tables(results, narrow),
        headlines=average_headlines(
            results,
            "sets",
            Metric("r1", "R@1 of images"),
            "mean of the paper's four sets",
            "i2i r1",
        ),
    )


def _title(name: str) -> str:
    return IMAGE_SETS[name].title if name in IMAGE_SETS else name


def _facts(contents: Sequence[ImagesResults]) -> Iterable[str]:
    for name, model_results in by_data_set(contents, "sets").items():
        figures = first_scores(model_results)
        n_queries = figures["queries"]
        n_alone = n_queries - figures["queries_with_positive"]
        counts = (
            f"{n_queries:,} queries, {figures['candidates']:,} candidates, "
            f"{model_results[0]['classes']:,} classes"
        )
        if n_alone > 0:
            counts += f", {n_alone:,} queries without a right answer"
        yield data_set_fact(_title(name), counts, model_results)


def _sets_spec(names: Sequence[str], contents: Sequence[ImagesResults]) -> Spec:
    average = Metric("r1", "R@1", "the paper's four")
    groups = [Group("Average", ("average",), (average,), {"r1": "average"})]
    for name in names:
        groups.append(_group(name, PRECISIONS, {"r1": name}))
    return TableSpec(
        "Image retrieval by data set", _rule(contents), HEADS, tuple(groups), _sets, published
    )


def _rule(contents: Sequence[ImagesResults]) -> str:
    return (
        "The other images of a query's class are right. R@1 is the paper's, over all queries: an "
        "image alone in its class counts as a miss. R-Precision and mAP@R are over the queries "
        "that have a right answer (Musgrave et al., ECCV 2020). "
        f"{SELF_IS_NO_CANDIDATE} {ties_rule(contents)}"
    )


def _more_recalls_spec(names: Sequence[str]) -> Spec:
    metrics = (
        Metric("r5", "R@5"),
        Metric("r10", "R@10"),
        Metric("precision_at_1", "P@1", "with a positive"),
    )
    return TableSpec(
        "Image retrieval: more recalls",
        "R@5 and R@10 by the same rule; P@1 is R@1 over the queries that have a right answer.",
        HEADS,
        tuple(_group(name, metrics) for name in names),
        _sets,
    )


def _group(
    name: str,
    metrics: tuple[Metric, ...],
    paper_keys: Mapping[str, str] | None = None,
) -> Group:
    """Describe the columns of one set."""
    compared = compared_figures(name, "i2i", metrics)
    return Group(_title(name), (name,), metrics, paper_keys, compared)


def _narrow_spec(names: Sequence[str], metric: Metric, contents: Sequence[ImagesResults]) -> Spec:
    """Describe the table of one figure on every set, since all three are too wide to print."""
    columns, paper_keys, compared = [], None, {}
    if metric.key == "r1":
        columns.append(Metric("average", "Average"))
        paper_keys = {name: name for name in ("average", *names)}
    for name in names:
        title = IMAGE_SETS[name].short_title if name in IMAGE_SETS else name
        columns.append(Metric(name, title))
        compared[name] = name, f"i2i {metric.key}"

    def figures_by_head(content: ImagesResults) -> FiguresByHead:
        by_head = {}
        for head, sets in _sets(content).items():
            by_head[head] = {metric.key: _one_figure(sets, metric.key)}
        return by_head

    return TableSpec(
        f"Image retrieval, {metric.label}",
        _rule(contents),
        HEADS,
        (Group(metric.label, (metric.key,), tuple(columns), paper_keys, compared),),
        figures_by_head,
        published,
    )


def _one_figure(sets: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return one figure of each set, with its interval, from a head's figures by set."""
    figures: dict[str, Any] = {}
    intervals = {}
    for name, set_figures in sets.items():
        figures[name] = set_figures.get(key)
        if key in (set_figures.get("ci") or {}):
            intervals[name] = set_figures["ci"][key]
    return {**figures, "ci": intervals}


def _sets(content: ImagesResults) -> FiguresByHead:
    """Return figures by head and set, with the average as another set."""
    figures = by_head_and_data_set(content["sets"])
    for head, average in content["average"].items():
        figures.setdefault(head, {})["average"] = {"r1": average}
    return figures

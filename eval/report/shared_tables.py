"""Columns, rules in words and facts about the data that the tables of several suites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cusa.eval.report.paired_differences import ComparedFigure
from cusa.eval.report.tables import (
    Content,
    Figures,
    FiguresByHead,
    Headline,
    Metric,
    NamedResult,
)

RECALLS = (Metric("r1", "R@1"), Metric("r5", "R@5"), Metric("r10", "R@10"))
PRECISIONS = (
    Metric("r1", "R@1"),
    Metric("r_precision", "R-Precision"),
    Metric("map_at_r", "mAP@R"),
)
TIES = {
    "pessimistic": (
        "Ties count against the model: a wrong candidate as similar as the right one comes before "
        "it."
    ),
    "mean": (
        "Ties count half: of the wrong candidates as similar as the right one, half come before it."
    ),
    "optimistic": (
        "Ties count for the model: a wrong candidate as similar as the right one comes after it."
    ),
}
SELF_IS_NO_CANDIDATE = (
    "Where queries are also candidates, a query is never its own candidate; it is excluded by its "
    "position in the data, never by its rank."
)


def published(content: Mapping[str, Any]) -> Figures | None:
    """Return the published row in a model's results, if there is one."""
    return content.get("paper")


def contents_of(results: Sequence[NamedResult[Content]]) -> list[Content]:
    """Return the results of the models that were measured."""
    return [result.content for result in results if result.content is not None]


def ties_rule(contents: Iterable[Mapping[str, Any]]) -> str:
    """Return the rule for ties in words; empty without results.

    Results without a rule, such as metrics.json 1.1, count ties against the model.
    """
    rules = list(dict.fromkeys(content.get("ties", "pessimistic") for content in contents))
    if len(rules) > 1:
        names = ", ".join(rules)
        return f"Ties are counted by different rules here ({names}): such figures do not compare."
    return TIES[rules[0]] if rules else ""


def intervals_rule(contents: Iterable[Mapping[str, Any]]) -> str:
    """Describe the intervals in words; empty if there are none."""
    # The keys are distinct descriptions, in order.
    rules: dict[str, None] = {}
    for content in contents:
        bootstrap = content.get("bootstrap")
        if bootstrap:
            rule = (
                f"{100 * bootstrap['level']:.0f} % bootstrap intervals over queries, "
                f"{bootstrap['samples']:,} samples, seed {bootstrap['seed']}"
            )
            rules[rule] = None
    return "; ".join(rules)


def fact(
    set_name: str,
    counts: str,
    fingerprints: Iterable[str | None],
    notes: Iterable[str] = (),
) -> str:
    """Describe a data set in a sentence: its counts, its hashes, and notes on it.

    Args:
        set_name: Name of the data set.
        counts: Its counts in words.
        fingerprints: The fingerprints that the models' results have; equal ones are shown once.
        notes: Remarks on the data set; equal ones are shown once.
    """
    short_hashes = dict.fromkeys(fingerprint[:12] for fingerprint in fingerprints if fingerprint)
    if short_hashes:
        counts += f", sha256 {' and '.join(short_hashes)}"
    # A model may have been measured before the data changed.
    if len(short_hashes) > 1:
        counts += ". The models were measured on different data, and their figures do not compare"
    different_notes = dict.fromkeys(set_note.rstrip(".") for set_note in notes)
    return f"{set_name}: {'. '.join([counts, *different_notes])}."


def data_set_fact(
    title: str,
    counts: str,
    model_results: Sequence[Mapping[str, Any]],
) -> str:
    """Describe a data set in a sentence, with the hashes and notes in the models' results.

    Args:
        title: Title of the data set.
        counts: Its counts in words.
        model_results: The models' results on it, each with ``fingerprint`` and ``notes``.
    """
    fingerprints, notes = [], []
    for result in model_results:
        fingerprints.append(result["fingerprint"])
        notes += result["notes"]
    return fact(title, counts, fingerprints, notes)


def first_scores(model_results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the figures of the first model's first head, whose counts hold for all heads.

    Args:
        model_results: The models' results on a data set, each with figures by head under ``heads``.
    """
    heads = model_results[0]["heads"]
    return next(iter(heads.values()))


def by_data_set(
    contents: Sequence[Mapping[str, Any]],
    sets_key: str,
) -> dict[str, list[Mapping[str, Any]]]:
    """Gather the models' results on each data set.

    Args:
        contents: Contents of the models' results files.
        sets_key: The key that holds results by data set.
    """
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for content in contents:
        for set_name, result in (content.get(sets_key) or {}).items():
            gathered.setdefault(set_name, []).append(result)
    return gathered


def data_set_names(
    contents: Sequence[Mapping[str, Any]],
    sets_key: str,
    published_names: Iterable[str],
) -> list[str]:
    """Return the names of all measured data sets: the published ones in their order, then others.

    Args:
        contents: Contents of the models' results files.
        sets_key: The key that holds results by data set.
        published_names: Names of the published data sets, in order.
    """
    measured = by_data_set(contents, sets_key)
    order = dict.fromkeys([*published_names, *measured])
    return [name for name in order if name in measured]


def compared_figures(
    data_set: str,
    task: str,
    metrics: Iterable[Metric],
) -> dict[str, ComparedFigure]:
    """Name the figures of a task as comparison.json does, by the keys of their metrics."""
    return {metric.key: (data_set, f"{task} {metric.key}") for metric in metrics}


def compared_headline(
    result: NamedResult[Any],
    label: str,
    figure: float,
    compared_figure: ComparedFigure | None,
) -> Headline:
    """Make a headline, with its difference from the first model's if they are compared.

    Args:
        result: The model's results.
        label: What the figure is.
        figure: The figure.
        compared_figure: Its data set and metric as in comparison.json; ``None`` if it is not there.
    """
    differences = result.differences
    if differences is None or compared_figure is None:
        return Headline(label, figure)
    return Headline(label, figure, differences.figures.get(compared_figure), differences.base)


def average_headlines(
    results: Sequence[NamedResult[Any]],
    sets_key: str,
    figure: Metric,
    average_title: str,
    compared_metric: str,
) -> dict[int, Headline]:
    """Choose each model's headline: the paper's average, or else the first data set's figure.

    Args:
        results: The results of each model.
        sets_key: The key that holds results by data set.
        figure: The figure that is averaged.
        average_title: Description of the average.
        compared_metric: Name of the figure in comparison.json, which has no averages.

    Returns:
        The headlines by position of the model, for the head in use.
    """
    headlines = {}
    for position, result in enumerate(results):
        content = result.content
        if content is None or not content[sets_key]:
            continue
        head = content["head"]
        title = average_title
        value = content["average"].get(head)
        compared_figure = None
        if value is None:
            title, first = next(iter(content[sets_key].items()))
            value = first["heads"][head].get(figure.key)
            compared_figure = title, compared_metric
        if value is not None:
            label = f"{figure.label}, {title}, {head} head"
            headlines[position] = compared_headline(result, label, value, compared_figure)
    return headlines


def heads_of(content: Mapping[str, Any]) -> FiguresByHead:
    """Return a model's figures by head."""
    return content["heads"]


def by_head_and_data_set(
    data_sets: Mapping[str, Any],
    take: Callable[[Any], Figures] = lambda figures: figures,
) -> dict[str, dict[str, Any]]:
    """Rearrange figures by data set and head into figures by head and data set.

    Args:
        data_sets: Results by data set, each with figures by head under ``heads``.
        take: Selects the wanted figures of a head; by default all.
    """
    by_head: dict[str, dict[str, Any]] = {}
    for set_name, result in data_sets.items():
        for head, figures in result["heads"].items():
            by_head.setdefault(head, {})[set_name] = take(figures)
    return by_head

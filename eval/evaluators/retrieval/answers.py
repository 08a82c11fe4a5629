"""The answers of two models to the same queries, for the report's "one right, the other wrong"."""

from __future__ import annotations

from dataclasses import replace

from cusa.data.embeddings import SplitEmbeddings
from cusa.eval.evaluators.request import MeasureOptions
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.metric_options import PerQuery
from cusa.eval.metrics.per_query import Rankings, Ties
from cusa.eval.report.disagreements import AnsweredSplit, CrossModalTask, disagreements
from cusa.eval.report.gallery import EmbeddedItems
from cusa.eval.report.report import Examples


def with_disagreements(
    examples: Examples,
    first_answers: dict[str, AnsweredSplit],
    second: AnsweredSplit,
    options: MeasureOptions,
) -> Examples:
    """Add the queries that either this model or the first one answers right.

    Args:
        examples: The model's other examples.
        first_answers: The first model's answers; if there are none yet, this model is the first.
        second: This model's answers.
        options: How many queries to show.
    """
    first = first_answers.setdefault("first", second)
    if second is first:
        return examples
    # There are two kinds of them in each direction.
    n_shown = (options.n_shown + 1) // 2
    return replace(examples, disagreements=disagreements(first, second, n_shown))


def answered_queries(
    split: EvaluatedSplit,
    embeddings: SplitEmbeddings,
    per_query: PerQuery,
    ties: Ties,
) -> AnsweredSplit:
    """Return a model's cross-modal answers, without what belongs to its other head."""
    across = replace(
        embeddings,
        image={"cross": embeddings.image["cross"]},
        text={"cross": embeddings.text["cross"]},
    )
    rankings: dict[CrossModalTask, Rankings] = {}
    for task in ("i2t", "t2i"):
        rankings[task] = per_query[f"cross/retrieval/{task}"]
    return AnsweredSplit(EmbeddedItems(across, split.view, split.image_root), rankings, ties)

"""Semantic textual similarity: correlation of sentence embeddings' cosines with human scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.unit_rows import unit_rows
from cusa.eval.evaluators.protocol import named_in_errors
from cusa.eval.evaluators.sts.results import StsScores, SubsetMeans
from cusa.eval.evaluators.sts.tasks import StsTask
from cusa.eval.metrics.correlation import Correlations, ScoredPairs, correlations


def cosine(first_rows: np.ndarray, second_rows: np.ndarray) -> np.ndarray:
    """Compute the cosine of each row with the same row of another array, in float64.

    Args:
        first_rows: float ``[pairs, dim]``: embeddings of the first items, not necessarily
            L2-normalised.
        second_rows: float ``[pairs, dim]``: embeddings of the second items, likewise.

    Returns:
        float64 ``[pairs]``.

    Raises:
        EmbeddingsError: If the shapes differ, or an embedding is zero or not finite; the message
            names the pair and the item.
    """
    if first_rows.ndim != 2 or first_rows.shape != second_rows.shape:
        raise EmbeddingsError(
            f"embeddings have shapes {first_rows.shape} and {second_rows.shape}; both must be "
            "[pairs, dim]"
        )
    return (_directions(first_rows, 1) * _directions(second_rows, 2)).sum(axis=1)


def _directions(embeddings: np.ndarray, sentence: int) -> np.ndarray:
    """Scale rows to length 1; refuse rows that are zero or not finite."""
    is_zero = np.equal(embeddings, 0).all(axis=1)
    has_no_cosine = is_zero | ~np.isfinite(embeddings).all(axis=1)
    if has_no_cosine.any():
        pair = int(has_no_cosine.argmax())
        problem = "zero" if is_zero[pair] else "not finite"
        raise EmbeddingsError(
            f"the embedding of pair {pair}, sentence {sentence}, is {problem} and has no cosine; "
            "check what the encoder does with that sentence",
            location=f"pair {pair}, sentence {sentence}",
        )
    return unit_rows(embeddings, np.float64)


def evaluate_sts(task: StsTask, rows: np.ndarray) -> tuple[StsScores, ScoredPairs | None]:
    """Score a model's embeddings on one task.

    The headline follows the rule of the CUSA paper, which is SimCSE's (Gao et al., EMNLP 2021,
    appendix on STS settings). ``mean`` and ``wmean`` are SentEval's: the mean of the subsets'
    correlations, plain or weighted by their numbers of pairs.

    Args:
        task: The task.
        rows: float ``[sentences, dim]``: the embeddings of :attr:`StsTask.sentences`, in order, not
            necessarily L2-normalised.

    Returns:
        Correlations, times 100 (docs/METRICS.md); and the pairs behind the headline, or ``None`` if
        their subset is missing.

    Raises:
        EmbeddingsError: If there is not one row for each sentence, an embedding is zero or not
            finite, or a correlation is not defined.
    """
    pairs = _scored_pairs(task, np.asarray(rows))
    subsets: dict[str, Correlations] = {}
    for name, subset_pairs in pairs.items():
        with named_in_errors(f"{task.name} {name}"):
            subsets[name] = correlations(subset_pairs.similarities, subset_pairs.human_scores)
    all_pairs = _concatenated(list(pairs.values()))
    with named_in_errors(task.name):
        over_all = correlations(all_pairs.similarities, all_pairs.human_scores)
    headline, rule = _headline(task, over_all, subsets)
    scores: StsScores = {
        "headline": headline,
        "headline_rule": rule,
        "spearman": _means("spearman", over_all, subsets),
        "pearson": _means("pearson", over_all, subsets),
        "subsets": subsets,
        "pairs": over_all["pairs"],
    }
    if task.headline == "all":
        return scores, all_pairs
    return scores, pairs.get(task.headline)


def _scored_pairs(task: StsTask, rows: np.ndarray) -> dict[str, ScoredPairs]:
    """Return the cosines and human scores of each subset."""
    sentences = task.sentences
    if rows.ndim != 2 or len(rows) != len(sentences):
        raise EmbeddingsError(
            f"{task.name}: embeddings of {len(sentences)} sentences have shape {rows.shape}; give "
            "[sentences, dim]",
            name=task.name,
        )
    row_of_sentence = dict(zip(sentences, range(len(sentences)), strict=True))
    scored_pairs = {}
    for subset in task.subsets:
        first_rows = list(map(row_of_sentence.__getitem__, subset.first))
        second_rows = list(map(row_of_sentence.__getitem__, subset.second))
        with named_in_errors(f"{task.name} {subset.name}"):
            cosines = cosine(rows[first_rows], rows[second_rows])
        scored_pairs[subset.name] = ScoredPairs(cosines, subset.gold)
    return scored_pairs


def _concatenated(subsets: Sequence[ScoredPairs]) -> ScoredPairs:
    similarities = [pairs.similarities for pairs in subsets]
    human_scores = [pairs.human_scores for pairs in subsets]
    return ScoredPairs(np.concatenate(similarities), np.concatenate(human_scores))


def _headline(
    task: StsTask,
    over_all: Correlations,
    subsets: Mapping[str, Correlations],
) -> tuple[float | None, str]:
    """Return the figure by the published rule, and that rule in words."""
    if task.headline == "all":
        return over_all["spearman"], "Spearman over all subsets, concatenated"
    if task.headline not in subsets:  # only where the caller allowed a partial task
        return None, f"Spearman on {task.headline}, which is missing"
    return subsets[task.headline]["spearman"], f"Spearman on {task.headline}"


def _means(
    kind: Literal["spearman", "pearson"],
    over_all: Correlations,
    subsets: Mapping[str, Correlations],
) -> SubsetMeans:
    values = [subset[kind] for subset in subsets.values()]
    n_pairs = [subset["pairs"] for subset in subsets.values()]
    return {
        "all": over_all[kind],
        "mean": float(np.mean(values)),
        "wmean": float(np.average(values, weights=n_pairs)),
    }

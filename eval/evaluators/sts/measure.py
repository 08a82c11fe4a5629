"""Semantic textual similarity: how well cosines of sentence embeddings follow human judgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.unit_rows import unit_rows
from cusa.eval.evaluators.named_errors import named_in_errors
from cusa.eval.evaluators.sts.results import StsScores, SubsetMeans
from cusa.eval.evaluators.sts.tasks import Pairs, StsTask
from cusa.eval.metrics.correlation import Correlations, ScoredPairs, correlations


@dataclass(frozen=True)
class StsResult:
    """A task's scores, and what they were computed from.

    Attributes:
        scores: Correlations, times 100 (docs/METRICS.md).
        pairs: Cosines and human scores of each subset.
        headline_pairs: Those that the headline is computed over; ``None`` where its subset is
            missing.
    """

    scores: StsScores
    pairs: Mapping[str, ScoredPairs]
    headline_pairs: ScoredPairs | None


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the cosine of each row with the same row of another array, in float64.

    Args:
        first: float ``[pairs, dim]``: embeddings of the first sentences, not necessarily
            L2-normalised.
        second: float ``[pairs, dim]``: embeddings of the second sentences.

    Returns:
        float64 ``[pairs]``.

    Raises:
        CusaError: If the shapes differ, or an embedding is zero or not finite; says of which pair
            and sentence.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise EmbeddingsError(
            f"embeddings of shape {first.shape} and {second.shape} are no pairs; "
            "both must be [pairs, dim]"
        )
    return (_directions(first, 1) * _directions(second, 2)).sum(axis=1)


def _directions(embeddings: np.ndarray, sentence: int) -> np.ndarray:
    """Scale rows to length 1; refuse those that have no direction."""
    is_zero = np.equal(embeddings, 0).all(axis=1)
    has_no_cosine = is_zero | ~np.isfinite(embeddings).all(axis=1)
    if has_no_cosine.any():
        pair = int(has_no_cosine.argmax())
        problem = "zero" if is_zero[pair] else "not finite"
        raise EmbeddingsError(
            f"the embedding of pair {pair}, sentence {sentence}, is {problem} and has no cosine; "
            "look at what the encoder does with that sentence",
            location=f"pair {pair}, sentence {sentence}",
        )
    return unit_rows(embeddings, np.float64)


def evaluate_sts(task: StsTask, sentences: Sequence[str], rows: np.ndarray) -> StsResult:
    """Score a model's embeddings on one task.

    The headline is the CUSA paper's, which is that of SimCSE (Gao et al., EMNLP 2021, appendix on
    STS settings): Spearman over the concatenation of all subsets for STS12 to STS16, over the test
    subset for STSBenchmark and SICKRelatedness. ``mean`` and ``wmean`` are SentEval's: the mean of
    the subsets' correlations, plain or weighted by their pairs.

    Args:
        task: The task.
        sentences: Different sentences, in any order: those of the task
            (:attr:`StsTask.sentences`) among them.
        rows: float ``[sentences, dim]``: the embedding of each, not necessarily L2-normalised.

    Raises:
        EmbeddingsError: If there is not one row for each sentence, one is embedded twice or not at
            all.
        CusaError: If an embedding is zero or not finite, or a correlation is not defined.
    """
    rows = np.asarray(rows)
    row_of_sentence = _row_of_sentence(task, sentences, rows)
    pairs: dict[str, ScoredPairs] = {}
    subsets: dict[str, Correlations] = {}
    for subset in task.subsets:
        with named_in_errors(f"{task.name} {subset.name}"):
            cosines = _subset_cosines(subset, row_of_sentence, rows)
            pairs[subset.name] = ScoredPairs(cosines, subset.gold)
            subsets[subset.name] = correlations(cosines, subset.gold)
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
    headline_pairs = all_pairs if task.headline == "all" else pairs.get(task.headline)
    return StsResult(scores, pairs, headline_pairs)


def _concatenated(subsets: Sequence[ScoredPairs]) -> ScoredPairs:
    similarities, human_scores = [], []
    for pairs in subsets:
        similarities.append(pairs.similarities)
        human_scores.append(pairs.human_scores)
    return ScoredPairs(np.concatenate(similarities), np.concatenate(human_scores))


def _row_of_sentence(task: StsTask, sentences: Sequence[str], rows: np.ndarray) -> dict[str, int]:
    """Map sentences to rows; refuse rows that are not those of the task's sentences."""
    if rows.ndim != 2 or len(rows) != len(sentences):
        raise EmbeddingsError(
            f"{task.name}: the embeddings are an array of shape {rows.shape} for {len(sentences)} "
            "sentences; give [sentences, dim]",
            name=task.name,
        )
    row_of_sentence = dict(zip(sentences, range(len(sentences)), strict=True))
    missing = [sentence for sentence in task.sentences if sentence not in row_of_sentence]
    if missing or len(row_of_sentence) != len(sentences):
        problem = "one is there twice"
        if missing:
            problem = f"the first without an embedding is {missing[0]!r}"
        raise EmbeddingsError(
            f"{task.name}: the sentences are not those of the task, each once: {problem}",
            name=task.name,
        )
    return row_of_sentence


def _subset_cosines(
    subset: Pairs, row_of_sentence: Mapping[str, int], rows: np.ndarray
) -> np.ndarray:
    first = list(map(row_of_sentence.__getitem__, subset.first))
    second = list(map(row_of_sentence.__getitem__, subset.second))
    return cosine(rows[first], rows[second])


def _headline(
    task: StsTask, over_all: Correlations, subsets: Mapping[str, Correlations]
) -> tuple[float | None, str]:
    """Choose the published figure, and say how it is computed."""
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
    values, n_pairs = [], []
    for subset in subsets.values():
        values.append(subset[kind])
        n_pairs.append(subset["pairs"])
    return {
        "all": over_all[kind],
        "mean": float(np.mean(values)),
        "wmean": float(np.average(values, weights=n_pairs)),
    }

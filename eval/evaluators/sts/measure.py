"""Semantic textual similarity: how well cosines of sentence embeddings follow human judgement, in 100 x correlation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cusa.data.errors import CusaError, EmbeddingsError
from cusa.data.unit_rows import unit_rows
from cusa.eval.evaluators.sts.data import StsTask
from cusa.eval.evaluators.sts.results import StsScores, SubsetMeans
from cusa.eval.metrics.correlation import Correlations, correlations


@dataclass(frozen=True)
class StsResult:
    """A task's scores, and what they were computed from.

    Attributes:
        scores: ``headline`` (``None`` where its subset is missing), ``headline_rule``, ``spearman`` and ``pearson``
            (each ``all``, ``mean``, ``wmean``), ``subsets`` (name to ``spearman``, ``pearson``, ``pairs``), ``pairs``;
            correlations are times 100.
        cosines: float64 ``[pairs]`` of each subset.
        gold: float64 ``[pairs]`` of each subset, in the task's own scale.
        headline_subsets: Names of the subsets that the headline is computed over, concatenated.
    """

    scores: StsScores
    cosines: Mapping[str, np.ndarray]
    gold: Mapping[str, np.ndarray]
    headline_subsets: tuple[str, ...]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of ``a`` with the same row of ``b``, computed in float64.

    Args:
        a: ``[pairs, dim]`` embeddings of the first sentences, any float type, not necessarily L2-normalised.
        b: ``[pairs, dim]`` embeddings of the second sentences.

    Returns:
        float64 ``[pairs]``.

    Raises:
        CusaError: If the shapes differ, or an embedding is zero or not finite; says of which pair and sentence.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise CusaError(
            f"embeddings of shape {a.shape} and {b.shape} are no pairs; both must be [pairs, dim]"
        )
    return (_directions(a, 1) * _directions(b, 2)).sum(axis=1)


def _directions(x: np.ndarray, sentence: int) -> np.ndarray:
    is_zero = np.equal(x, 0).all(axis=1)
    bad = np.flatnonzero(is_zero | ~np.isfinite(x).all(axis=1))
    if len(bad):
        what = "zero" if is_zero[bad[0]] else "not finite"
        raise CusaError(
            f"the embedding of pair {bad[0]}, sentence {sentence}, is {what} and has no cosine; "
            "look at what the encoder does with that sentence"
        )
    return unit_rows(x, np.float64)


def evaluate_sts(task: StsTask, sentences: Sequence[str], rows: np.ndarray) -> StsResult:
    """Score a model's embeddings on one task.

    The headline is the CUSA paper's, which is that of SimCSE (Gao et al., EMNLP 2021, appendix on STS settings):
    Spearman over the concatenation of all subsets for STS12 to STS16, over the test subset for STSBenchmark and
    SICKRelatedness. ``mean`` and ``wmean`` are SentEval's: the mean of the subsets' correlations, plain or weighted by
    their pairs.

    Args:
        task: The task.
        sentences: Different sentences, in any order: those of the task (:attr:`StsTask.sentences`)
            among them.
        rows: float ``[sentences, dim]``: the embedding of each, not necessarily L2-normalised.

    Raises:
        EmbeddingsError: If there is not one row for each sentence, one is embedded twice or not at
            all.
        CusaError: If an embedding is zero or not finite, or a correlation is not defined.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or len(rows) != len(sentences):
        raise EmbeddingsError(
            f"{task.name}: the embeddings are an array of shape {rows.shape} for {len(sentences)} sentences; give "
            "[sentences, dim]",
            name=task.name,
        )
    row_of = {sentence: row for row, sentence in enumerate(sentences)}
    missing = [sentence for sentence in task.sentences if sentence not in row_of]
    if missing or len(row_of) != len(sentences):
        problem = (
            f"the first without an embedding is {missing[0]!r}" if missing else "one is there twice"
        )
        raise EmbeddingsError(
            f"{task.name}: the sentences are not those of the task, each once: {problem}",
            name=task.name,
        )
    cosines: dict[str, np.ndarray] = {}
    subsets: dict[str, Correlations] = {}
    for subset in task.subsets:
        with _about(f"{task.name} {subset.name}"):
            first, second = (
                rows[[row_of[s] for s in side]] for side in (subset.first, subset.second)
            )
            cosines[subset.name] = cosine(first, second)
            subsets[subset.name] = correlations(cosines[subset.name], subset.gold)
    gold = {subset.name: subset.gold for subset in task.subsets}
    with _about(task.name):
        together = correlations(
            np.concatenate(list(cosines.values())), np.concatenate(list(gold.values()))
        )
    headline, rule = _headline(task, together, subsets)
    return StsResult(
        {
            "headline": headline,
            "headline_rule": rule,
            "spearman": _means("spearman", together, subsets),
            "pearson": _means("pearson", together, subsets),
            "subsets": subsets,
            "pairs": together["pairs"],
        },
        cosines,
        gold,
        tuple(name for name in gold if task.headline in ("all", name)),
    )


def _headline(
    task: StsTask, together: Correlations, subsets: Mapping[str, Correlations]
) -> tuple[float | None, str]:
    """Choose the published figure, and say how it is computed."""
    if task.headline == "all":
        return together["spearman"], "Spearman over all subsets, concatenated"
    if task.headline not in subsets:  # only where the caller allowed a partial task
        return None, f"Spearman on {task.headline}, which is missing"
    return subsets[task.headline]["spearman"], f"Spearman on {task.headline}"


def _means(
    kind: Literal["spearman", "pearson"],
    together: Correlations,
    subsets: Mapping[str, Correlations],
) -> SubsetMeans:
    values = [subset[kind] for subset in subsets.values()]
    n_pairs = [subset["pairs"] for subset in subsets.values()]
    return {
        "all": together[kind],
        "mean": float(np.mean(values)),
        "wmean": float(np.average(values, weights=n_pairs)),
    }


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """Say in an error's line what it happened in."""
    try:
        yield
    except CusaError as error:
        raise CusaError(f"{what}: {error}") from None

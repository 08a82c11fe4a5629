"""The tasks of semantic textual similarity: published sizes, and pairs with human scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cusa.data.errors import DataError

# Number of pairs of each subset, in SentEval's order (Conneau and Kiela, LREC 2018). STS13 lacks
# SMT, which is not freely distributed and which no published figure of SentEval's STS13 includes.
TASKS: Mapping[str, Mapping[str, int]] = {
    "STS12": {
        "MSRpar": 750,
        "MSRvid": 750,
        "SMTeuroparl": 459,
        "surprise.OnWN": 750,
        "surprise.SMTnews": 399,
    },
    "STS13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "STS14": {
        "deft-forum": 450,
        "deft-news": 300,
        "headlines": 750,
        "images": 750,
        "OnWN": 750,
        "tweet-news": 750,
    },
    "STS15": {
        "answers-forums": 375,
        "answers-students": 750,
        "belief": 375,
        "headlines": 750,
        "images": 750,
    },
    "STS16": {
        "answer-answer": 254,
        "headlines": 249,
        "plagiarism": 230,
        "postediting": 244,
        "question-question": 209,
    },
    "STSBenchmark": {"train": 5749, "dev": 1500, "test": 1379},
    "SICKRelatedness": {"train": 4500, "dev": 500, "test": 4927},
}


class NoStsDataError(DataError):
    """No STS data: the folder holds none, or is no folder."""


@dataclass(frozen=True)
class Pairs:
    """The annotated sentence pairs of one subset.

    Attributes:
        first: First sentence of each pair, without white space around it.
        second: Second sentence of each pair, likewise.
        gold: float64 ``[pairs]``: mean human score, 0 to 5.
        name: Name of the subset.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    gold: np.ndarray
    name: str


@dataclass(frozen=True)
class StsTask:
    """One task of semantic textual similarity.

    Attributes:
        name: A key of :data:`TASKS`.
        subsets: Its subsets, in the order of :data:`TASKS`.
        headline: Pairs behind the published figure: ``"all"`` subsets together, or the ``"test"``
            subset.
        notes: Remarks on its figures, such as missing subsets.
    """

    name: str
    subsets: tuple[Pairs, ...]
    headline: Literal["all", "test"]
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """Its distinct sentences, in order of first appearance."""
        different: dict[str, None] = {}
        for subset in self.subsets:
            different.update(dict.fromkeys(subset.first))
            different.update(dict.fromkeys(subset.second))
        return list(different)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the subsets' names, sentences and gold scores, in order."""
        digest = hashlib.sha256()
        for subset in self.subsets:
            content = [subset.name, subset.first, subset.second, subset.gold.tolist()]
            digest.update(json.dumps(content).encode())
        return digest.hexdigest()

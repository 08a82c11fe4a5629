"""What every query got, kept beside the metrics: runs are compared query by query."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from cusa.data.embeddings import Head
from cusa.data.errors import FileFormatError, RunError
from cusa.data.files import atomic_file
from cusa.data.foreign.npy import read_npz
from cusa.data.parsing import parse_json
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.evaluators.retrieval.coco import PROTOCOL_METRICS
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.metrics.per_query import Bounds, Rankings, Ties
from cusa.eval.metrics.ranks import RankBounds

_PRECISIONS = ("r_precision", "average_precision")


@dataclass(frozen=True)
class Queries:
    """What the queries of one suite got.

    Attributes:
        name: The model's name.
        uni_head: Its head within a modality.
        ties: How ties were counted.
        sets: Fingerprint of each data set.
        per_query: Rankings, or scored pairs, by ``data set/head[/protocol]/task``.
    """

    name: str
    uni_head: Head
    ties: Ties
    sets: Mapping[str, str]
    per_query: Mapping[str, Rankings | ScoredPairs]


class _About(BaseModel):
    """What is kept beside the arrays."""

    name: str
    uni_head: Head
    ties: Ties
    sets: dict[str, str]
    candidates: dict[str, int]


def queries_file(folder: Path, suite: str) -> Path:
    """Return where the queries of a suite are kept."""
    return folder / f"{suite}-queries.npz"


def save_queries(folder: Path, suite: str, queries: Queries) -> None:
    """Write the queries of a suite."""
    arrays: dict[str, np.ndarray] = {}
    n_candidates: dict[str, int] = {}
    for key, measured in queries.per_query.items():
        if isinstance(measured, ScoredPairs):
            arrays[f"{key}:cosines"] = measured.similarities
            arrays[f"{key}:gold"] = measured.human_scores
        else:
            n_candidates[key] = measured.candidates
            arrays[f"{key}:ranks"] = np.stack(measured.best)
        if measured.clusters is not None:
            arrays[f"{key}:clusters"] = measured.clusters
        if isinstance(measured, Rankings):
            for name in _PRECISIONS:
                bounds = getattr(measured, name)
                if bounds is not None:
                    arrays[f"{key}:{name}"] = np.stack(bounds)
    about = {
        "name": queries.name,
        "uni_head": queries.uni_head,
        "ties": queries.ties,
        "sets": dict(queries.sets),
        "candidates": n_candidates,
    }
    arrays = {"about": np.array(json.dumps(about)), **arrays}
    path = queries_file(folder, suite)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # its stub has a flag, too


def load_queries(folder: Path, suite: str) -> Queries | None:
    """Read the queries of a suite; ``None`` if there are none.

    Raises:
        RunError: If the file is damaged.
    """
    path = queries_file(folder, suite)
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path)
        about = parse_json(str(arrays.pop("about", np.array("null"))), path)
        return _queries(_About.model_validate(about, strict=True), arrays)
    except (FileFormatError, ValueError, KeyError):  # pydantic's error is a ValueError
        command = EVALUATORS[suite].results_file.command
        raise RunError(f"{path} is damaged; run {command} again", path=path) from None


def _queries(about: _About, arrays: Mapping[str, np.ndarray]) -> Queries:
    per_query: dict[str, Rankings | ScoredPairs] = {}
    for name in arrays:
        key, _, kind = name.rpartition(":")
        if key.count("/") < 2:
            raise ValueError(f"{name} is no data set/head/task")
        if kind == "cosines":
            per_query[key] = _scored_pairs(key, arrays)
        elif kind == "ranks":
            per_query[key] = _rankings(key, arrays, about.candidates[key])
    for key, measured in per_query.items():
        protocol = key.split("/")[-2]
        if protocol in PROTOCOL_METRICS:
            _check_precisions(key, measured, PROTOCOL_METRICS[protocol])
    return Queries(about.name, about.uni_head, about.ties, about.sets, per_query)


def _check_precisions(key: str, measured: Rankings | ScoredPairs, metrics: Sequence[str]) -> None:
    """Refuse rankings without the precisions that their protocol reports."""
    if isinstance(measured, ScoredPairs):
        raise ValueError(f"{key} are no rankings")
    lacks_r_precision = "r_precision" in metrics and measured.r_precision is None
    lacks_average_precision = "map_at_r" in metrics and measured.average_precision is None
    if lacks_r_precision or lacks_average_precision:
        raise ValueError(f"{key} has no precisions")


def _scored_pairs(key: str, arrays: Mapping[str, np.ndarray]) -> ScoredPairs:
    similarities, human_scores = arrays[f"{key}:cosines"], arrays[f"{key}:gold"]
    if similarities.ndim != 1 or similarities.shape != human_scores.shape:
        raise ValueError(f"cosines {similarities.shape} of {human_scores.shape} scores")
    _check_within(similarities, -np.inf, np.inf)
    _check_within(human_scores, -np.inf, np.inf)
    return ScoredPairs(similarities, human_scores, _clusters(key, arrays, human_scores))


def _rankings(key: str, arrays: Mapping[str, np.ndarray], n_candidates: int) -> Rankings:
    ranks = arrays[f"{key}:ranks"]
    if ranks.dtype.kind != "i" or ranks.ndim != 2 or len(ranks) != 2:
        raise ValueError(f"ranks are {ranks.dtype} {ranks.shape}")
    optimistic, pessimistic = ranks
    if ((optimistic > pessimistic) | ((optimistic < 0) != (pessimistic < 0))).any():
        raise ValueError("ranks are out of order")
    if ranks.size and (ranks.min() < -1 or ranks.max() >= max(1, n_candidates)):
        raise ValueError("ranks are out of range")
    return Rankings(
        RankBounds(optimistic, pessimistic),
        n_candidates,
        r_precision=_precisions(f"{key}:r_precision", arrays, ranks.shape),
        average_precision=_precisions(f"{key}:average_precision", arrays, ranks.shape),
        clusters=_clusters(key, arrays, optimistic),
    )


def _precisions(
    name: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> Bounds | None:
    bounds = arrays.get(name)
    if bounds is None:
        return None
    _check_within(bounds, 0, 1)
    if bounds.shape != shape:
        raise ValueError(f"{name} is {bounds.shape}")
    return Bounds(*bounds)


def _clusters(
    key: str, arrays: Mapping[str, np.ndarray], of_queries: np.ndarray
) -> np.ndarray | None:
    clusters = arrays.get(f"{key}:clusters")
    if clusters is None:
        return None
    if clusters.dtype.kind != "i" or clusters.shape != of_queries.shape:
        raise ValueError(f"clusters are {clusters.dtype} {clusters.shape}")
    return clusters


def _check_within(values: np.ndarray, least: float, most: float) -> None:
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"{values.dtype} that is not finite")
    if ((values < least) | (values > most)).any():
        raise ValueError(f"not within {least} and {most}")

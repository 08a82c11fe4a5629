"""Per-query results, kept beside the metrics so that models can be compared query by query."""

from __future__ import annotations

from collections.abc import Mapping
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
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Queries:
    """A model's per-query results in one suite.

    Attributes:
        name: The model's name.
        uni_head: The head that answers within a modality.
        ties: How ties were counted.
        sets: Fingerprint of each data set by name.
        per_query: Rankings, or scored pairs, by ``data set/head[/protocol]/task``.
    """

    name: str
    uni_head: Head
    ties: Ties
    sets: Mapping[str, str]
    per_query: Mapping[str, Rankings | ScoredPairs]


class _About(BaseModel):
    """The JSON metadata stored beside the arrays."""

    name: str
    uni_head: Head
    ties: Ties
    sets: dict[str, str]
    candidates: dict[str, int]


def queries_file(folder: Path, suite: str) -> Path:
    """Return the path of a suite's per-query results in a results folder."""
    return folder / f"{suite}-queries.npz"


def save_queries(
    folder: Path,
    suite: str,
    queries: Queries,
) -> None:
    """Write the per-query results of a suite to its file in a results folder."""
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
    about = _About(
        name=queries.name,
        uni_head=queries.uni_head,
        ties=queries.ties,
        sets=dict(queries.sets),
        candidates=n_candidates,
    )
    arrays["about"] = np.array(about.model_dump_json())
    path = queries_file(folder, suite)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # its stub has a flag, too


def load_queries(folder: Path, suite: str) -> Queries | None:
    """Read the per-query results of a suite; return ``None`` if there is no file.

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


def _queries(about: _About, arrays: Arrays) -> Queries:
    per_query: dict[str, Rankings | ScoredPairs] = {}
    for name in arrays:
        key, _, kind = name.rpartition(":")
        _require(key.count("/") >= 2)
        if kind == "cosines":
            per_query[key] = _scored_pairs(key, arrays)
        elif kind == "ranks":
            per_query[key] = _rankings(key, arrays, about.candidates[key])
    return Queries(about.name, about.uni_head, about.ties, about.sets, per_query)


def _scored_pairs(key: str, arrays: Arrays) -> ScoredPairs:
    similarities, human_scores = arrays[f"{key}:cosines"], arrays[f"{key}:gold"]
    _require(similarities.ndim == 1 and similarities.shape == human_scores.shape)
    _require(_protocol(key) not in PROTOCOL_METRICS)
    for values in (similarities, human_scores):
        _require(values.dtype.kind == "f" and np.isfinite(values).all())
    return ScoredPairs(similarities, human_scores, _clusters(key, arrays, human_scores))


def _rankings(
    key: str,
    arrays: Arrays,
    n_candidates: int,
) -> Rankings:
    ranks = arrays[f"{key}:ranks"]
    _require(ranks.dtype.kind == "i" and ranks.ndim == 2 and len(ranks) == 2)
    optimistic, pessimistic = ranks
    _require((optimistic <= pessimistic).all())
    _require(((optimistic < 0) == (pessimistic < 0)).all())
    _require(ranks.min(initial=0) >= -1 and ranks.max(initial=0) < max(1, n_candidates))
    rankings = Rankings(
        RankBounds(optimistic, pessimistic),
        n_candidates,
        r_precision=_precisions(f"{key}:r_precision", arrays, ranks.shape),
        average_precision=_precisions(f"{key}:average_precision", arrays, ranks.shape),
        clusters=_clusters(key, arrays, optimistic),
    )
    reported = PROTOCOL_METRICS.get(_protocol(key), ())
    _require("r_precision" not in reported or rankings.r_precision is not None)
    _require("map_at_r" not in reported or rankings.average_precision is not None)
    return rankings


def _protocol(key: str) -> str:
    return key.split("/")[-2]


def _precisions(
    name: str,
    arrays: Arrays,
    shape: tuple[int, ...],
) -> Bounds | None:
    bounds = arrays.get(name)
    if bounds is None:
        return None
    _require(bounds.dtype.kind == "f" and bounds.shape == shape)
    _require(((bounds >= 0) & (bounds <= 1)).all())  # NaN fails this, too
    return Bounds(*bounds)


def _clusters(
    key: str,
    arrays: Arrays,
    query_values: np.ndarray,
) -> np.ndarray | None:
    clusters = arrays.get(f"{key}:clusters")
    if clusters is not None:
        _require(clusters.dtype.kind == "i" and clusters.shape == query_values.shape)
    return clusters


def _require(is_sound: bool | np.bool_) -> None:
    """Raise ``ValueError``, which :func:`load_queries` reports as damage, if a check fails."""
    if not is_sound:
        raise ValueError

"""What every query got, kept beside the metrics: runs are compared query by query."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from cusa.data.embeddings import Head
from cusa.data.errors import FileFormatError, RunError
from cusa.data.files import atomic_file
from cusa.data.foreign.npy import read_npz
from cusa.data.parsing import parse_json
from cusa.eval.evaluators.retrieval.coco import PROTOCOL_METRICS
from cusa.eval.metrics.per_query import Bounds, Rankings, Ties
from cusa.eval.metrics.ranks import RankBounds

Suite = Literal["retrieval", "images", "sts"]
SUITES: tuple[Suite, ...] = ("retrieval", "images", "sts")


@dataclass(frozen=True)
class Judged:
    """Pairs of a similarity task: the model's cosines and the human scores, float64 ``[n]`` each."""

    cosines: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True)
class Queries:
    """What the queries of one suite got.

    Attributes:
        name: The model's.
        uni_head: Its head within a modality.
        ties: How ties were counted.
        sets: Fingerprint of each data set.
        found: Rankings, or judged pairs, by ``set/head/part/task``.
    """

    name: str
    uni_head: str
    ties: str
    sets: Mapping[str, str]
    found: Mapping[str, Rankings | Judged]


def queries_file(folder: Path, suite: Suite) -> Path:
    """Where the queries of a suite are kept."""
    return folder / f"{suite}-queries.npz"


def save_queries(folder: Path, suite: Suite, queries: Queries) -> None:
    """Write the queries of a suite."""
    arrays: dict[str, np.ndarray] = {}
    candidates: dict[str, int] = {}
    for key, found in queries.found.items():
        if isinstance(found, Judged):
            arrays |= {f"{key}:cosines": found.cosines, f"{key}:gold": found.gold}
            continue
        candidates[key] = found.candidates
        arrays[f"{key}:ranks"] = np.stack(found.best)
        if found.clusters is not None:
            arrays[f"{key}:clusters"] = found.clusters
        for name in ("r_precision", "average_precision"):
            if (bounds := getattr(found, name)) is not None:
                arrays[f"{key}:{name}"] = np.stack(bounds)
    about = {
        "name": queries.name,
        "uni_head": queries.uni_head,
        "ties": queries.ties,
        "sets": dict(queries.sets),
    }
    text = json.dumps({**about, "candidates": candidates})
    with atomic_file(queries_file(folder, suite)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=np.array(text), **arrays)  # type: ignore[arg-type] # its stub has a flag, too


def load_queries(folder: Path, suite: Suite) -> Queries | None:
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
        raise RunError(f"{path} is damaged; run cusa-eval {suite} again", path=path) from None


class _About(BaseModel):
    """What is kept beside the arrays."""

    name: str
    uni_head: Head
    ties: Ties
    sets: dict[str, str]
    candidates: dict[str, int]


def _queries(about: _About, arrays: Mapping[str, np.ndarray]) -> Queries:
    found: dict[str, Rankings | Judged] = {}
    for name in arrays:
        key, _, what = name.rpartition(":")
        if what == "cosines":
            found[key] = _judged(arrays[name], arrays[f"{key}:gold"])
        elif what == "ranks":
            found[key] = _rankings(key, arrays, about.candidates[key])
        if key.count("/") < 2:
            raise ValueError(f"{name} is no set/head/task")
    for key, rankings in found.items():
        protocol = key.split("/")[-2]
        if protocol in PROTOCOL_METRICS:
            _check_precisions(key, rankings, PROTOCOL_METRICS[protocol])
    return Queries(about.name, about.uni_head, about.ties, about.sets, found)


def _check_precisions(key: str, found: Rankings | Judged, metrics: Sequence[str]) -> None:
    """Refuse rankings without the precisions that their protocol reports."""
    if isinstance(found, Judged):
        raise ValueError(f"{key} are no rankings")
    lacks_r_precision = "r_precision" in metrics and found.r_precision is None
    lacks_average_precision = "map_at_r" in metrics and found.average_precision is None
    if lacks_r_precision or lacks_average_precision:
        raise ValueError(f"{key} has no precisions")


def _judged(cosines: np.ndarray, gold: np.ndarray) -> Judged:
    if cosines.ndim != 1 or cosines.shape != gold.shape:
        raise ValueError(f"cosines {cosines.shape} of {gold.shape} scores")
    _check_numbers(cosines, -np.inf, np.inf)
    _check_numbers(gold, -np.inf, np.inf)
    return Judged(cosines, gold)


def _rankings(key: str, arrays: Mapping[str, np.ndarray], candidates: int) -> Rankings:
    ranks, clusters = arrays[f"{key}:ranks"], arrays.get(f"{key}:clusters")
    if ranks.dtype.kind != "i" or ranks.ndim != 2 or len(ranks) != 2:
        raise ValueError(f"ranks are {ranks.dtype} {ranks.shape}")
    optimistic, pessimistic = ranks
    if ((optimistic > pessimistic) | ((optimistic < 0) != (pessimistic < 0))).any():
        raise ValueError("ranks are out of order")
    if ranks.size and (ranks.min() < -1 or ranks.max() >= max(1, candidates)):
        raise ValueError("ranks are out of range")
    if clusters is not None and (clusters.dtype.kind != "i" or clusters.shape != optimistic.shape):
        raise ValueError(f"clusters are {clusters.dtype} {clusters.shape}")
    precisions: dict[str, Bounds | None] = {}
    for name in ("r_precision", "average_precision"):
        bounds = arrays.get(f"{key}:{name}")
        if bounds is not None:
            _check_numbers(bounds, 0, 1)
            if bounds.shape != ranks.shape:
                raise ValueError(f"{name} is {bounds.shape}")
        precisions[name] = None if bounds is None else Bounds(*bounds)
    return Rankings(
        RankBounds(optimistic, pessimistic), candidates, **precisions, clusters=clusters
    )


def _check_numbers(values: np.ndarray, least: float, most: float) -> None:
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"{values.dtype} that is not finite")
    if ((values < least) | (values > most)).any():
        raise ValueError(f"not within {least} and {most}")

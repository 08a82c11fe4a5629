"""What every query got, kept beside the metrics: runs are compared query by query."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.eval.rankings import Bounds, Rankings
from cusa.train.ranks import RankBounds

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
    about = {"name": queries.name, "uni_head": queries.uni_head, "ties": queries.ties, "sets": dict(queries.sets)}
    text = json.dumps({**about, "candidates": candidates})
    with atomic_file(queries_file(folder, suite)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=np.array(text), **arrays)  # type: ignore[arg-type] # its stub has a flag, too


def load_queries(folder: Path, suite: Suite) -> Queries | None:
    """Read the queries of a suite; ``None`` if there are none.

    Raises:
        CusaError: If the file is damaged.
    """
    path = queries_file(folder, suite)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in file.files if name != "about"}
        return _queries(about, arrays)
    except (OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, BadZipFile, zlib.error):
        raise CusaError(f"{path} is damaged; run cusa-eval {suite} again") from None


def _queries(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Queries:
    found: dict[str, Rankings | Judged] = {}
    for name in arrays:
        key, _, what = name.rpartition(":")
        if what == "cosines":
            found[key] = Judged(arrays[name], arrays[f"{key}:gold"])
        elif what == "ranks":
            precisions: dict[str, Any] = {
                p: Bounds(*arrays[f"{key}:{p}"]) if f"{key}:{p}" in arrays else None
                for p in ("r_precision", "average_precision")
            }
            clusters = arrays.get(f"{key}:clusters")
            found[key] = Rankings(RankBounds(*arrays[name]), about["candidates"][key], **precisions, clusters=clusters)
    return Queries(about["name"], about["uni_head"], about["ties"], about["sets"], found)

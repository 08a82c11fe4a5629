"""The published results (paper, supplementary tables 7-13), to set a run beside the row of its setting."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STUDENTS = {"clip-vit-base-patch32": "CLIP ViT-B/32", "clip-vit-large-patch14-336": "CLIP ViT-L/14@336px"}
_METHODS = {
    frozenset({"contrastive"}): "baseline",
    frozenset({"contrastive", "csa"}): "CSA",
    frozenset({"contrastive", "usa"}): "USA",
    frozenset({"contrastive", "csa", "usa"}): "CUSA",
}
_SPLITS = {("coco", "test", 5_000, 25_000): "coco5k", ("flickr30k", "test", 1_000, 5_000): "flickr1k"}


@dataclass(frozen=True)
class PaperRow:
    """A published row of cross-modal retrieval.

    Attributes:
        host: The model, as the paper names it.
        method: ``"baseline"``, ``"CSA"``, ``"USA"`` or ``"CUSA"``.
        scores: ``i2t_r1`` to ``t2i_r10`` and ``rsum``, in percent. Checkpoints were chosen on the test split.
    """

    host: str
    method: str
    scores: Mapping[str, float]


def paper_tables() -> dict[str, Any]:
    """All tables as published, with their source; percent, STS as 100 x Spearman."""
    return json.loads((importlib.resources.files("cusa.eval") / "paper.json").read_text())


def paper_row(student: str, terms: Sequence[str], metrics: Mapping[str, Any]) -> PaperRow | None:
    """The row of the same student, loss and split, if the paper has it.

    Args:
        student: The student's name or folder.
        terms: Terms of the loss.
        metrics: Content of metrics.json.
    """
    host = _STUDENTS.get(student.rstrip("/").rsplit("/", 1)[-1])
    method = _METHODS.get(frozenset(terms))
    split = _SPLITS.get((metrics["dataset"], metrics["split"], metrics["n_images"], metrics["n_captions"]))
    rows = [r for r in paper_tables()["cross_modal"] if (r["host"], r["method"]) == (host, method)]
    return PaperRow(rows[0]["host"], rows[0]["method"], rows[0][split]) if rows and split else None

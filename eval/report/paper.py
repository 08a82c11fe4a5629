"""The published results (supplementary tables 7-13 of the paper), to show beside a run's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

# The host's name in the paper, by the last part of the student's name.
_HOSTS = {
    "clip-vit-base-patch32": "CLIP ViT-B/32",
    "clip-vit-large-patch14-336": "CLIP ViT-L/14@336px",
}
_METHODS = {
    frozenset({"contrastive"}): "baseline",
    frozenset({"contrastive", "csa"}): "CSA",
    frozenset({"contrastive", "usa"}): "USA",
    frozenset({"contrastive", "csa", "usa"}): "CUSA",
}
# Keys of the paper's splits by data set, split, number of images and number of captions. Karpathy's
# test split of COCO has 25,010 captions, ten more than five per image.
_SPLITS = {
    ("coco", "test", 5_000, 25_000): "coco5k",
    ("coco", "test", 5_000, 25_010): "coco5k",
    ("flickr30k", "test", 1_000, 5_000): "flickr1k",
}


@dataclass(frozen=True)
class PaperRow:
    """A published row.

    Attributes:
        host: The paper's name of the model.
        method: ``"baseline"``, ``"CSA"``, ``"USA"`` or ``"CUSA"``.
        scores: Percent, by the keys of the table. The paper chose checkpoints on the test split.
    """

    host: str
    method: str
    scores: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as metrics.json holds it."""
        return {"host": self.host, "method": self.method, **self.scores}


def paper_tables() -> dict[str, Any]:
    """Read all published tables, with their source: percent, and 100 x Spearman for STS."""
    path = resources.files("cusa.eval.report") / "paper.json"
    return json.loads(path.read_text("utf-8"))


def paper_row(
    student: str,
    terms: Sequence[str],
    table: str,
) -> PaperRow | None:
    """Look up the row of the same student and loss; ``None`` if the table has none.

    Args:
        student: Name or folder of the student.
        terms: Terms of the loss.
        table: ``"cross_modal"``, ``"eccv_caption"``, ``"image_retrieval_r1"`` or
            ``"sts_spearman"``.
    """
    host = _HOSTS.get(student.rstrip("/").rsplit("/", 1)[-1])
    method = _METHODS.get(frozenset(terms))
    for scores in paper_tables()[table]:
        published_row = PaperRow(scores.pop("host"), scores.pop("method"), scores)
        if (published_row.host, published_row.method) == (host, method):
            return published_row
    return None


def paper_retrieval(
    student: str,
    terms: Sequence[str],
    metrics: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Look up the published recalls of the same student, loss and split; ``None`` without any.

    Args:
        student: Name or folder of the student.
        terms: Terms of the loss.
        metrics: Content of metrics.json.
    """
    split_key = (metrics["dataset"], metrics["split"], metrics["n_images"], metrics["n_captions"])
    published_row = paper_row(student, terms, "cross_modal")
    if published_row is None or split_key not in _SPLITS:
        return None
    split_scores = published_row.scores[_SPLITS[split_key]]
    return replace(published_row, scores=split_scores).to_dict()

"""The score by which training chooses its best epoch."""

from __future__ import annotations

from cusa.data.embeddings import SplitEmbeddings
from cusa.eval.metrics.ranks import two_way_rank_bounds
from cusa.eval.metrics.recalls import (
    CUTS,
    recall_at,
    recall_name,
    recall_sum,
)


def validation_scores(embeddings: SplitEmbeddings) -> dict[str, float]:
    """Compute RSUM of the cross-modal heads, and the six recalls that it sums.

    Returns:
        ``rsum``, ``i2t_r1``, ``i2t_r5``, ``i2t_r10``, ``t2i_r1``, ``t2i_r5`` and ``t2i_r10``, in
        percent.
    """
    rank_bounds = two_way_rank_bounds(
        embeddings.image["cross"], embeddings.text["cross"], embeddings.caption_image
    )
    recalls: list[dict[str, float]] = []
    scores: dict[str, float] = {}
    for direction, bounds in zip(("i2t", "t2i"), rank_bounds, strict=True):
        figures: dict[str, float] = {}
        for cut in CUTS:
            # Ties count against the student, so that one that maps all items to one point
            # retrieves nothing.
            recall = recall_at(bounds.pessimistic, cut)
            figures[recall_name(cut)] = recall
            scores[f"{direction}_{recall_name(cut)}"] = recall
        recalls.append(figures)
    return {"rsum": recall_sum(recalls), **scores}

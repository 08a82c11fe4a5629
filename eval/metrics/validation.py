"""The score by which training chooses its best epoch."""

from __future__ import annotations

from cusa.data.embeddings import SplitEmbeddings
from cusa.eval.metrics.ranks import recall_at, two_way_rank_bounds


def validation_scores(embeddings: SplitEmbeddings) -> dict[str, float]:
    """R@1/5/10 both ways with the cross-modal heads, and their sum, in percent."""
    images, texts = embeddings.image["cross"], embeddings.text["cross"]
    both = zip(
        ("i2t", "t2i"), two_way_rank_bounds(images, texts, embeddings.caption_image), strict=True
    )
    scores = {
        f"{name}_r{k}": recall_at(bounds.pessimistic, k)
        for name, bounds in both
        for k in (1, 5, 10)
    }
    return {"rsum": sum(scores.values()), **scores}

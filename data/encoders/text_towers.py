"""What the embedding of a text model of transformers is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

TextFeature = Literal["text_embeds", "pooler", "mean"]

# Text towers, whose embedding is the pooled output (of the last or the end token), not the mean.
_TOWERS = ("clip_text_model", "siglip_text_model", "siglip2_text_model")


def text_feature(config: Any) -> TextFeature:
    """Return which part of a text model's output is its embedding.

    Args:
        config: Its configuration, of transformers.

    Returns:
        ``"text_embeds"``, the projected embedding of a text tower that has one; ``"pooler"``, the
        pooled output of other text towers; ``"mean"``, the mean over the tokens, for other models.
    """
    architectures = getattr(config, "architectures", None) or ()
    for name in architectures:
        if str(name).endswith("TextModelWithProjection"):
            return "text_embeds"
    if config.model_type in _TOWERS:
        return "pooler"
    return "mean"


def text_embedding(
    model: Any,
    feature: TextFeature,
    inputs: Mapping[str, Tensor],
) -> Tensor:
    """Run a text model of transformers, and return its embeddings: float ``[n, dim]``.

    Args:
        model: The model.
        feature: The part of its output, of :func:`text_feature`.
        inputs: Its inputs; the mean over the tokens is that of those in ``"attention_mask"``.
    """
    output = model(**inputs)
    embedding: Tensor
    match feature:
        case "text_embeds":
            embedding = output.text_embeds
        case "pooler":
            embedding = output.pooler_output
        case "mean":
            weights = inputs["attention_mask"][..., None].to(output.last_hidden_state.dtype)
            embedding = (output.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)
    return embedding

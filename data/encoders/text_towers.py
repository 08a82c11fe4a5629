"""What the embedding of a text model of transformers is."""

from __future__ import annotations

from typing import Any, Literal

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

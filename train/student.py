"""Students: two towers, each with a cross-modal and a uni-modal head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from cusa.data.embeddings import HEADS
from cusa.data.errors import StudentError
from cusa.train.towers.tower import Towers

HEAD_INIT_STD = 0.02


class Features(NamedTuple):
    """Embeddings of one modality from both heads, float ``[n, embed_dim]``, not normalised."""

    cross: torch.Tensor
    uni: torch.Tensor


class Student(nn.Module):
    """Two towers' trunks, each with a cross-modal and a uni-modal head.

    A head is a LayerNorm and a Linear.

    Args:
        towers: The towers.
        embed_dim: Dimension of the heads' embeddings; ``None``: that of the trunks' features.

    Raises:
        StudentError: If the embeddings of the two modalities would differ in dimension.
    """

    def __init__(
        self,
        towers: Towers,
        embed_dim: int | None,
    ) -> None:
        super().__init__()
        image_dim, text_dim = towers.image.dim, towers.text.dim
        if embed_dim is None and image_dim != text_dim:
            raise StudentError(
                f"the features of the image tower have {image_dim} dimensions, those of the text "
                f"tower {text_dim}: pass a common one for the heads, --set student.embed_dim=512",
                name="embed_dim",
            )
        self.image_trunk = towers.image.trunk
        self.text_trunk = towers.text.trunk
        self.image_heads = _heads(image_dim, embed_dim or image_dim)
        self.text_heads = _heads(text_dim, embed_dim or text_dim)

    @property
    def embed_dim(self) -> int:
        """Return the dimension of the embeddings of the cross-modal heads."""
        return len(self.image_heads.get_parameter("cross.1.bias"))

    def encode_image(self, inputs: Any) -> Features:
        """Embed images, given as the image trunk takes them."""
        return _both_heads(self.image_heads, self.image_trunk(inputs))

    def encode_text(self, inputs: Any) -> Features:
        """Embed texts, given as the text trunk takes them."""
        return _both_heads(self.text_heads, self.text_trunk(inputs))


def _heads(feature_dim: int, embed_dim: int) -> nn.ModuleDict:
    heads = nn.ModuleDict()
    for head_name in HEADS:
        linear = nn.Linear(feature_dim, embed_dim)
        nn.init.normal_(linear.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(linear.bias)
        heads[head_name] = nn.Sequential(nn.LayerNorm(feature_dim), linear)
    return heads


def _both_heads(heads: nn.ModuleDict, features: torch.Tensor) -> Features:
    cross = heads["cross"](features)
    uni = heads["uni"](features)
    return Features(cross, uni)

"""CUSALoss.on_similarities for a host whose similarity is attention, as in SGRAF and SCAN.

Run it: ``python docs/examples/sgraf_style.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cusa import CUSALoss, LossConfig, Teachers

from made_up import N_WORDS, caption_batches, make_data


class CrossAttentionHost(nn.Module):
    """Region and word features, their similarity by attention, and pooled embeddings for USA."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.regions = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 4 * dim), nn.Unflatten(1, (4, dim))
        )
        self.words = nn.Embedding(N_WORDS, dim)
        self.uni_image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.uni_text = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))

    def forward(
        self, pixels: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Similarities ``[B, B]`` of image i and caption j, and uni-modal embeddings ``[B, d]``."""
        regions = self.regions(pixels)  # [B, R, d]
        words = self.words(tokens)  # [B, W, d]
        return (
            attended_similarity(regions, words),
            self.uni_image(regions.mean(1)),
            self.uni_text(words.mean(1)),
        )


def attended_similarity(
    regions: torch.Tensor, words: torch.Tensor, sharpness: float = 9.0
) -> torch.Tensor:
    """Cosine of each word with what it attends to in the image, averaged over a caption's words.

    Args:
        regions: float ``[B, R, d]``.
        words: float ``[B, W, d]``; captions of different lengths would be masked here.
        sharpness: What multiplies the cosines before the softmax over regions.

    Returns:
        ``[B, B]`` of image i and caption j, in [-1, 1].
    """
    regions, words = F.normalize(regions, dim=-1), F.normalize(words, dim=-1)
    attention = (sharpness * torch.einsum("ird,jwd->ijwr", regions, words)).softmax(dim=-1)
    attended = torch.einsum("ijwr,ird->ijwd", attention, regions)
    return F.cosine_similarity(attended, words, dim=-1).mean(dim=-1)


def main(steps: int = 60, batch_size: int = 32) -> list[float]:
    """Train; the loss of every step."""
    torch.manual_seed(0)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))

        teachers = Teachers(store, "train")
        host = CrossAttentionHost()
        # The paper's weights for SAF; SGR has 0.60 and 0.75.
        loss_fn = CUSALoss(LossConfig(alpha=1.0, beta=0.75))
        optimizer = torch.optim.AdamW(
            [{"params": host.parameters()}, *loss_fn.param_groups()],
            lr=3e-3,
        )
        for caption_rows in caption_batches(store, batch_size, steps):
            rows = teachers.rows(caption_rows)
            similarity, *uni_features = host(pixels[rows.image_ids], tokens[caption_rows])
            terms = loss_fn.on_similarities(
                similarity,
                *uni_features,
                rows.image,
                rows.text,
                rows.image_ids,
            )
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            losses.append(terms.total.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

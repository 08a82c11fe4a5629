"""Soft labels in a fusion encoder's matching head: X2-VLM as in the paper's appendix.

The host's contrastive loss stays as it is. In its matching loss, the hard negatives get soft labels
as targets, and a layer on each branch makes uni-modal embeddings for USA.

Run it: ``python docs/examples/matching_head.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from cusa import (
    CUSALoss,
    LossConfig,
    TeacherBatch,
    Teachers,
    contrastive_loss,
    hard_negatives,
    matching_loss,
    matching_targets,
    soft_labels,
)

from made_up import N_WORDS, caption_batches, make_data

TAU_DRAW = 0.3  # the smaller, the harder the negatives; X2-VLM draws at its own temperature
TAU_TARGETS = 0.1  # at 1, the targets of negatives would all be near 1/B
EMBED_DIM = 32


class Encoded(NamedTuple):
    """What the two encoders make of a batch.

    Attributes:
        patches: float ``[B, R, d]``, for the fusion encoder.
        words: float ``[B, W, d]``, for the fusion encoder.
        image_features: float ``[B, d]``, for the contrastive loss.
        text_features: float ``[B, d]``, for the contrastive loss.
    """

    patches: torch.Tensor
    words: torch.Tensor
    image_features: torch.Tensor
    text_features: torch.Tensor


class FusionHost(nn.Module):
    """Two encoders, a fusion encoder with a matching head, and a temperature of its own."""

    def __init__(self, dim: int = EMBED_DIM) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 4 * dim), nn.Unflatten(1, (4, dim))
        )
        self.words = nn.Embedding(N_WORDS, dim)
        self.image_projection = nn.Linear(dim, dim)
        self.text_projection = nn.Linear(dim, dim)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.fusion = nn.TransformerDecoderLayer(dim, 2, 64, dropout=0.0, batch_first=True)
        self.match = nn.Linear(dim, 2)

    def encode(self, pixels: torch.Tensor, tokens: torch.Tensor) -> Encoded:
        """Return patches, words and the features of the contrastive loss."""
        patches = self.patches(pixels)
        words = self.words(tokens)
        image_features = self.image_projection(patches.mean(dim=1))
        text_features = self.text_projection(words.mean(dim=1))
        return Encoded(patches, words, image_features, text_features)

    def contrastive(self, similarity: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
        """Return the host's own contrastive loss; it knows nothing of soft labels."""
        self.temperature.data.clamp_(0.01, 0.5)
        to_texts = contrastive_loss(similarity, self.temperature, image_ids)
        to_images = contrastive_loss(similarity.T, self.temperature, image_ids)
        return (to_texts + to_images) / 2

    def score(self, patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return logits ``[M, 2]`` of "no match" and "match" for M pairs."""
        return self.match(self.fusion(words, patches).mean(dim=1))


def soft_matching_loss(
    host: FusionHost,
    encoded: Encoded,
    similarity: torch.Tensor,
    rows: TeacherBatch,
) -> torch.Tensor:
    """Return the host's matching loss with soft labels for its hard negatives.

    Args:
        host: The host.
        encoded: The batch.
        similarity: float ``[B, B]`` of image i and caption j.
        rows: The teachers' rows.
    """
    text_of_image = hard_negatives(similarity, rows.image_ids, TAU_DRAW)
    image_of_text = hard_negatives(similarity.T, rows.image_ids, TAU_DRAW)
    patches, words = encoded.patches, encoded.words
    logits = host.score(
        torch.cat([patches, patches, patches[image_of_text]]),
        torch.cat([words, words[text_of_image], words]),
    )
    teacher_image = F.normalize(rows.image.float(), dim=-1)
    teacher_text = F.normalize(rows.text.float(), dim=-1)
    labels_of_images = soft_labels(teacher_image @ teacher_image.T, TAU_TARGETS)
    labels_of_texts = soft_labels(teacher_text @ teacher_text.T, TAU_TARGETS)
    matches = torch.ones(len(patches))
    image_targets = matching_targets(labels_of_images, text_of_image)
    text_targets = matching_targets(labels_of_texts, image_of_text)
    return matching_loss(logits, torch.cat([matches, image_targets, text_targets]))


def main(steps: int = 200, batch_size: int = 32) -> list[dict[str, float]]:
    """Train; the three losses of every step."""
    torch.manual_seed(0)
    history = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))
        host = FusionHost()

        teachers = Teachers(store, "train")
        uni_image = nn.Linear(EMBED_DIM, EMBED_DIM)
        uni_text = nn.Linear(EMBED_DIM, EMBED_DIM)
        usa = CUSALoss(LossConfig(terms=("usa",), beta=0.75))  # the paper's weight for X2-VLM
        model = nn.ModuleList([host, uni_image, uni_text])
        groups = [{"params": model.parameters()}, *usa.param_groups()]
        optimizer = torch.optim.AdamW(groups, lr=3e-3)
        for caption_rows in caption_batches(store, batch_size, steps):
            rows = teachers.rows(caption_rows)
            encoded = host.encode(pixels[rows.image_ids], tokens[caption_rows])
            image_features = F.normalize(encoded.image_features, dim=-1)
            text_features = F.normalize(encoded.text_features, dim=-1)
            similarity = image_features @ text_features.T
            losses = {
                "contrastive": host.contrastive(similarity, rows.image_ids),
                "matching": soft_matching_loss(host, encoded, similarity, rows),
                "usa": usa(
                    image_features,
                    text_features,
                    uni_image(encoded.patches.mean(dim=1)),
                    uni_text(encoded.words.mean(dim=1)),
                    rows.image,
                    rows.text,
                ).total,
            }
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    return history


if __name__ == "__main__":
    history = main()
    for name, first in history[0].items():
        print(f"{name}: {first:.4f} -> {history[-1][name]:.4f}")

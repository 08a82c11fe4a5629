"""CUSALoss in a plain PyTorch loop, also with gradient caching for a batch too large for memory.

Run it: ``python docs/examples/plain_loop.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from cusa import CUSALoss, Teachers, encode_in_micro_batches

from made_up import N_WORDS, caption_batches, make_data


class Encoder(nn.Module):
    """Your encoder of one modality, with a cross-modal and a uni-modal head: LayerNorm + Linear."""

    def __init__(self, trunk: nn.Module, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.cross = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, embed_dim))
        self.uni = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, embed_dim))

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-modal, uni-modal embeddings, ``[n, embed_dim]`` each; the loss normalises them."""
        features = self.trunk(inputs)
        return self.cross(features), self.uni(features)


def main(steps: int = 60, batch_size: int = 32, micro_batch: int | None = None) -> list[float]:
    """Train; the loss of every step.

    Args:
        steps: Optimizer steps.
        batch_size: Pairs of a batch.
        micro_batch: Pairs that the encoders hold activations of; ``None``: all of the batch at
            once.
    """
    torch.manual_seed(0)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))
        image_encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.GELU()), 64, 32)
        text_encoder = Encoder(nn.Sequential(nn.EmbeddingBag(N_WORDS, 64), nn.GELU()), 64, 32)

        teachers = Teachers(store, "train")
        loss_fn = CUSALoss()
        model = nn.ModuleList([image_encoder, text_encoder])
        optimizer = torch.optim.AdamW(
            # The temperatures are parameters of the loss, and not decayed.
            [{"params": model.parameters()}, *loss_fn.param_groups()],
            lr=1e-3,
        )
        for caption_rows in caption_batches(store, batch_size, steps):
            rows = teachers.rows(caption_rows)
            images, texts = pixels[rows.image_ids], tokens[caption_rows]
            if micro_batch is None:
                encoded_images = image_encoder(images)
                encoded_texts = text_encoder(texts)
            else:  # the same loss and gradients; activations of micro_batch pairs at a time
                encoded_images = encode_in_micro_batches(image_encoder, images, micro_batch)
                encoded_texts = encode_in_micro_batches(text_encoder, texts, micro_batch)
            image_features, uni_image_features = encoded_images
            text_features, uni_text_features = encoded_texts
            terms = loss_fn(
                image_features,
                text_features,
                uni_image_features,
                uni_text_features,
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
    for micro_batch in (None, 8):
        losses = main(micro_batch=micro_batch)
        print(f"micro-batches of {micro_batch}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")

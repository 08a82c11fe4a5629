"""CUSALoss beside mixup: mixed pairs train the host's loss, and are left out of the soft labels.

A mixed image has no row in the store, and the teacher's rows of its two originals, mixed, are not
what the teacher would say of it. So CSA and USA see the pairs that were not mixed.

Run it: ``python docs/examples/mixup.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cusa import CUSALoss, LossConfig, Teachers

from made_up import N_WORDS, caption_batches, make_data
from plain_loop import Encoder

MIXED_SHARE = 0.25  # of the pairs of a batch
TAU = 0.07  # of the host's own contrastive loss


def mix_some(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix the first images of a batch with those behind them.

    Args:
        pixels: float ``[B, 3, h, w]``.

    Returns:
        The images; the targets of a contrastive loss, float ``[B, B]``, of which a mixed image
        shares its own between two captions; and bool ``[B]``, which images were mixed.
    """
    n_pairs = len(pixels)
    n_mixed = int(MIXED_SHARE * n_pairs)
    is_mixed = torch.arange(n_pairs) < n_mixed
    partners = torch.arange(n_pairs).roll(-n_mixed)
    shares = torch.where(is_mixed, torch.distributions.Beta(1.0, 1.0).sample((n_pairs,)), 1.0)
    weights = shares[:, None, None, None]
    targets = torch.diag(shares)
    targets[torch.arange(n_pairs), partners] += 1 - shares
    return weights * pixels + (1 - weights) * pixels[partners], targets, is_mixed


def main(steps: int = 60, batch_size: int = 32) -> list[tuple[float, float]]:
    """Train; the contrastive loss and the soft-label loss of every step."""
    torch.manual_seed(0)
    history = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))
        image_encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.GELU()), 64, 32)
        text_encoder = Encoder(nn.Sequential(nn.EmbeddingBag(N_WORDS, 64), nn.GELU()), 64, 32)

        teachers = Teachers(store, "train")
        n_clean = batch_size - int(MIXED_SHARE * batch_size)
        weights = LossConfig().effective_weights(n_clean)
        soft_labels = CUSALoss(
            LossConfig(terms=("csa", "usa"), alpha=weights["csa"], beta=weights["usa"])
        )
        model = nn.ModuleList([image_encoder, text_encoder])
        groups = [{"params": model.parameters()}, *soft_labels.param_groups()]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        for caption_rows in caption_batches(store, batch_size, steps):
            rows = teachers.rows(caption_rows)
            images, targets, is_mixed = mix_some(pixels[rows.image_ids])
            image_features, uni_image_features = image_encoder(images)
            text_features, uni_text_features = text_encoder(tokens[caption_rows])
            logits = F.normalize(image_features) @ F.normalize(text_features).T / TAU
            text_targets = targets.T / targets.sum(dim=0)[:, None]
            to_texts = F.cross_entropy(logits, targets)
            to_images = F.cross_entropy(logits.T, text_targets)
            contrastive = (to_texts + to_images) / 2

            is_clean = ~is_mixed
            terms = soft_labels(
                image_features[is_clean],
                text_features[is_clean],
                uni_image_features[is_clean],
                uni_text_features[is_clean],
                rows.image[is_clean],
                rows.text[is_clean],
            )
            optimizer.zero_grad()
            (contrastive + terms.total).backward()
            optimizer.step()
            history.append((contrastive.item(), terms.total.item()))
    return history


if __name__ == "__main__":
    history = main()
    names = ("contrastive", "soft labels")
    for name, first, last in zip(names, history[0], history[-1], strict=True):
        print(f"{name}: {first:.4f} -> {last:.4f}")

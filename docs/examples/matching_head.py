"""A fusion encoder's image-text-matching head, with hard negatives and soft targets.

It is the setting of X2-VLM and ALBEF.

The encoders are trained by CUSALoss; the head looks at pairs one by one, and learns from soft
labels that some of the hard negatives are no negatives.

Run it: ``python docs/examples/matching_head.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.functions import soft_labels
from cusa.train.loss.matching import hard_negatives, matching_loss, matching_targets

from made_up import N_WORDS, caption_batches, make_data

TAU_DRAW = 0.3  # the smaller, the harder the negatives
TAU_TARGETS = 0.1  # at 1, the targets of negatives would all be near 1/B


class FusionHost(nn.Module):
    """Patches and words, two embeddings of each modality, a fusion encoder with a matching head."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 4 * dim), nn.Unflatten(1, (4, dim))
        )
        self.words = nn.Embedding(N_WORDS, dim)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
                for name in ("v", "t", "uni_v", "uni_t")
            }
        )
        self.fusion = nn.TransformerDecoderLayer(dim, 2, 64, dropout=0.0, batch_first=True)
        self.match = nn.Linear(dim, 2)

    def score(self, patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Logits ``[M, 2]`` of "no match", "match", of M pairs ``[M, R, d]`` and ``[M, W, d]``."""
        return self.match(self.fusion(words, patches).mean(dim=1))


def main(steps: int = 200, batch_size: int = 32) -> list[tuple[float, float]]:
    """Train; the loss of the embeddings and that of the matching head, of every step."""
    torch.manual_seed(0)
    history = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))

        split = store.split("train")
        vision, words = store.embeddings("vision", "train"), store.embeddings("words", "train")
        host = FusionHost()
        loss_fn = CUSALoss(LossConfig(alpha=0.3, beta=0.75))  # the paper's weights for X2-VLM
        optimizer = torch.optim.AdamW(
            [{"params": host.parameters()}, *loss_fn.param_groups()],
            lr=3e-3,
        )
        for caption_rows in caption_batches(store, batch_size, steps):
            image_rows = split.caption_image[caption_rows]
            image_ids = torch.from_numpy(image_rows)
            patches = host.patches(pixels[image_rows])  # [B, R, d]
            texts = host.words(tokens[caption_rows])  # [B, W, d]
            v, uni_v = (host.heads[name](patches.mean(1)) for name in ("v", "uni_v"))
            t, uni_t = (host.heads[name](texts.mean(1)) for name in ("t", "uni_t"))
            teacher_v = torch.from_numpy(vision.gather(image_rows)).float()
            teacher_t = torch.from_numpy(words.gather(caption_rows)).float()
            terms = loss_fn(v, t, uni_v, uni_t, teacher_v, teacher_t, image_ids)

            similarity = F.normalize(v, dim=-1) @ F.normalize(t, dim=-1).T
            text_of_image = hard_negatives(similarity, image_ids, TAU_DRAW)
            image_of_text = hard_negatives(similarity.T, image_ids, TAU_DRAW)
            labels_v = soft_labels(teacher_v @ teacher_v.T, TAU_TARGETS)
            labels_t = soft_labels(teacher_t @ teacher_t.T, TAU_TARGETS)
            logits = host.score(
                torch.cat([patches, patches, patches[image_of_text]]),
                torch.cat([texts, texts[text_of_image], texts]),
            )
            targets_v = matching_targets(labels_v, text_of_image)
            targets_t = matching_targets(labels_t, image_of_text)
            matching = matching_loss(logits, torch.cat([torch.ones(len(v)), targets_v, targets_t]))

            optimizer.zero_grad()
            (terms.total + matching).backward()
            optimizer.step()
            history.append((terms.total.item(), matching.item()))
    return history


if __name__ == "__main__":
    history = main()
    for name, first, last in zip(("embeddings", "matching"), history[0], history[-1], strict=True):
        print(f"{name}: {first:.4f} -> {last:.4f}")

"""CSA and USA in a training loop of your own around an open_clip model.

open_clip's own trainer needs no code: ``python -m cusa.hosts.open_clip``. As there, the step is
``losses = loss(**model(images, texts), output_dict=True)``, then ``sum(losses.values())``;
open_clip's contrastive term, its logit_scale and its gathering stay what they are.

Run it: ``python docs/examples/open_clip_loss.py`` (needs ``open_clip_torch``)
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cusa.hosts.open_clip import SoftLabelLoss, add_soft_labels, labelled_tokens
from cusa.hosts.pairs import SplitTeachers

from made_up import CAPTION_WORDS, N_WORDS, make_data


class TinyClip(nn.Module):
    """``open_clip.create_model(...)`` in small: a few weights."""

    context_length = CAPTION_WORDS

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.visual = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 64), nn.GELU(), nn.Linear(64, dim)
        )
        self.text = nn.Sequential(nn.EmbeddingBag(N_WORDS, 64), nn.GELU(), nn.Linear(64, dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Features of tokens."""
        return self.text(text)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised features and the scale of the logits."""
        return {
            "image_features": F.normalize(self.visual(image), dim=-1),
            "text_features": F.normalize(self.encode_text(text), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


def main(clip_loss: nn.Module, epochs: int = 15, batch_size: int = 32) -> list[float]:
    """Train with a ``ClipLoss()``; the loss of every step."""
    torch.manual_seed(0)
    totals = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))
        # Your own data set of (image, tokens). Here item i is caption row i; yours may find its
        # rows with store.split("train").rows_of("train.tsv").
        caption_rows = np.arange(len(tokens))
        image_rows = store.split("train").caption_image[caption_rows]
        dataset = TensorDataset(pixels[image_rows], tokens)

        model = TinyClip()
        teachers = SplitTeachers(store, ("train",))
        loss = SoftLabelLoss(clip_loss, add_soft_labels(model), teachers)
        labelled = labelled_tokens(dataset, caption_rows, teachers, "train")
        # The heads and the temperatures are parameters of the model.
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
        for _ in range(epochs):
            for images, texts in DataLoader(labelled, batch_size, shuffle=True):
                losses = loss(**model(images, texts), output_dict=True)
                total = sum(losses.values())
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                totals.append(total.item())
    return totals


if __name__ == "__main__":
    from open_clip import ClipLoss

    losses = main(ClipLoss())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

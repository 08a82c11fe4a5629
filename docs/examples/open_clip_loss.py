"""CSA and USA at the place where open_clip's training calls ClipLoss.

open_clip's step is ``losses = loss(**model(images, texts), output_dict=True)``, then
``sum(losses.values())``. Here the model's dictionary gains uni-modal features, and the loss gains
one entry; open_clip's contrastive term, its logit_scale and its gathering stay what they are.

Run it: ``python docs/examples/open_clip_loss.py`` (needs ``open_clip_torch``)
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss

from made_up import N_WORDS, caption_batches, make_data


class WithUniHeads(nn.Module):
    """An open_clip model made with ``output_dict=True``, and on it the heads that USA trains."""

    def __init__(self, clip: nn.Module, dim: int) -> None:
        super().__init__()
        self.clip = clip
        self.uni_image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.uni_text = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """open_clip's outputs, and two more."""
        out = self.clip(image, text)
        return {
            **out,
            "uni_image_features": self.uni_image(out["image_features"]),
            "uni_text_features": self.uni_text(out["text_features"]),
        }


class SoftLabelClipLoss(nn.Module):
    """open_clip's own loss with CSA and USA beside it, weighed in the paper's proportions.

    ``logit_scale`` is 1/tau of the contrastive term and is left to open_clip. CSA and USA have
    temperatures of their own, which are parameters of this module.

    Args:
        clip_loss: ``open_clip.ClipLoss(...)``, or any loss with its interface.
        batch_size: Pairs that one loss sees: those of all ranks if ``gather``.
        gather: Whether CSA and USA see the batch of all ranks.
    """

    def __init__(self, clip_loss: nn.Module, batch_size: int, gather: bool = False) -> None:
        super().__init__()
        self.clip_loss = clip_loss
        # The paper's contrastive term is InfoNCE / B; beside an undivided one, CSA and USA weigh B
        # times more.
        weights = LossConfig().effective_weights(batch_size)
        config = LossConfig(terms=("csa", "usa"), alpha=weights["csa"], beta=weights["usa"])
        self.cusa = CUSALoss(config, gather=gather)

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        uni_image_features: torch.Tensor,
        uni_text_features: torch.Tensor,
        teacher_image: torch.Tensor,
        teacher_text: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
        output_dict: bool = False,
    ) -> dict[str, torch.Tensor] | torch.Tensor:
        """As ClipLoss; features come L2-normalised from open_clip, teacher rows as stored."""
        contrastive = self.clip_loss(image_features, text_features, logit_scale, logit_bias)
        terms = self.cusa(
            image_features,
            text_features,
            uni_image_features,
            uni_text_features,
            teacher_image,
            teacher_text,
        )
        # One entry for both: total alone carries gradients.
        losses = {"contrastive_loss": contrastive, "soft_label_loss": terms.total}
        return losses if output_dict else contrastive + terms.total


class TinyClip(nn.Module):
    """``open_clip.create_model(..., output_dict=True)`` in small: a few weights."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.visual = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 64), nn.GELU(), nn.Linear(64, dim)
        )
        self.text = nn.Sequential(nn.EmbeddingBag(N_WORDS, 64), nn.GELU(), nn.Linear(64, dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised features and the scale of the logits."""
        return {
            "image_features": F.normalize(self.visual(image), dim=-1),
            "text_features": F.normalize(self.text(text), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


def main(clip_loss: nn.Module, steps: int = 60, batch_size: int = 32) -> list[float]:
    """Train with a ``ClipLoss()``; the loss of every step."""
    torch.manual_seed(0)
    totals = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))

        split = store.split("train")
        vision, words = store.embeddings("vision", "train"), store.embeddings("words", "train")
        model = WithUniHeads(TinyClip(), 32)
        loss = SoftLabelClipLoss(clip_loss, batch_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        # open_clip gives the model's parameters alone to its optimizer; the temperatures are the
        # loss's.
        optimizer.add_param_group({"params": loss.parameters(), "weight_decay": 0.0})
        for caption_rows in caption_batches(store, batch_size, steps):
            image_rows = split.caption_image[caption_rows]
            model_out = model(pixels[image_rows], tokens[caption_rows])
            model_out["teacher_image"] = vision.gather(image_rows)
            model_out["teacher_text"] = words.gather(caption_rows)
            losses = loss(**model_out, output_dict=True)
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

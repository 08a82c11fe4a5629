"""CSA and USA beside SigLIP's own pairwise sigmoid loss.

Run it: ``python docs/examples/siglip.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import SiglipConfig, SiglipModel

from cusa import CUSALoss, LossConfig, Teachers

from made_up import N_WORDS, caption_batches, make_data


def tiny_siglip() -> SiglipModel:
    """Stands for ``SiglipModel.from_pretrained(...)``."""
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**size, "vocab_size": N_WORDS, "max_position_embeddings": 16, "projection_size": 32}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return SiglipModel(
        SiglipConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16})
    )


def main(steps: int = 60, batch_size: int = 32) -> list[tuple[float, float]]:
    """Train; the sigmoid loss and the soft-label loss of every step."""
    torch.manual_seed(0)
    history = []
    with tempfile.TemporaryDirectory() as folder:
        store, pixels, tokens = make_data(Path(folder))
        siglip = tiny_siglip()

        teachers = Teachers(store, "train")
        dim = siglip.config.vision_config.hidden_size
        uni_image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        uni_text = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        # The sigmoid loss sums over candidates and averages over queries: of the scale of InfoNCE,
        # not of InfoNCE / B.
        weights = LossConfig().effective_weights(batch_size)
        config = LossConfig(terms=("csa", "usa"), alpha=weights["csa"], beta=weights["usa"])
        soft_labels = CUSALoss(config)
        model = nn.ModuleList([siglip, uni_image, uni_text])
        optimizer = torch.optim.AdamW(
            [{"params": model.parameters()}, *soft_labels.param_groups()],
            lr=1e-3,
        )
        for caption_rows in caption_batches(store, batch_size, steps):
            rows = teachers.rows(caption_rows)
            pairs = {"input_ids": tokens[caption_rows], "pixel_values": pixels[rows.image_ids]}
            outputs = siglip(**pairs, return_loss=True)
            terms = soft_labels(
                outputs.image_embeds,
                outputs.text_embeds,
                uni_image(outputs.image_embeds),
                uni_text(outputs.text_embeds),
                rows.image,
                rows.text,
            )
            optimizer.zero_grad()
            (outputs.loss + terms.total).backward()
            optimizer.step()
            history.append((outputs.loss.item(), terms.total.item()))
    return history


if __name__ == "__main__":
    history = main()
    for name, first, last in zip(("sigmoid", "soft labels"), history[0], history[-1], strict=True):
        print(f"{name}: {first:.4f} -> {last:.4f}")

"""CSA and USA beside a hinge loss of the hardest negatives, as in VSE++ and SGRAF.

The hinge is a sum over the batch, and the paper's alpha and beta are far too small beside it. The
weights are scaled once, by the norms of both gradients in a few batches.

Run it: ``python docs/examples/hinge_loss.py``
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cusa import CUSALoss, LossConfig, Teachers, balanced_config

from made_up import MadeUp, caption_batches, make_data
from sgraf_style import CrossAttentionHost

MARGIN = 0.2
MEASURED_BATCHES = 4
RATIO = 1 / 3  # of the soft labels' gradient to the hinge's; the default


def max_hinge(similarity: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """Return the violations of the margin by each query's hardest negative, summed.

    Args:
        similarity: float ``[B, B]`` of image i and caption j.
        image_ids: int64 ``[B]``: other captions of an image are no negatives of it.
    """
    positives = similarity.diag()
    is_positive = image_ids[:, None] == image_ids
    to_captions = (MARGIN + similarity - positives[:, None]).masked_fill(is_positive, 0)
    to_images = (MARGIN + similarity - positives).masked_fill(is_positive, 0)
    hardest_captions = to_captions.clamp(min=0).amax(dim=1)
    hardest_images = to_images.clamp(min=0).amax(dim=0)
    return hardest_captions.sum() + hardest_images.sum()


class HingeTraining(nn.Module):
    """A host with a hinge loss, and the soft labels beside it."""

    def __init__(self, data: MadeUp, config: LossConfig) -> None:
        super().__init__()
        self.data = data
        self.teachers = Teachers(data.store, "train")
        self.host = CrossAttentionHost()
        self.soft_labels = CUSALoss(config)

    def losses(self, caption_rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hinge loss and the soft-label loss of a batch."""
        rows = self.teachers.rows(caption_rows)
        similarity, uni_image, uni_text = self.host(
            self.data.pixels[rows.image_ids], self.data.tokens[caption_rows]
        )
        terms = self.soft_labels.on_similarities(
            similarity, uni_image, uni_text, rows.image, rows.text, rows.image_ids
        )
        return max_hinge(similarity, rows.image_ids), terms.total


def balance(training: HingeTraining, batches: Iterator[np.ndarray]) -> LossConfig:
    """Return the settings whose soft labels have ``RATIO`` times the gradient of the hinge."""
    losses = (training.losses(caption_rows) for caption_rows in batches)
    config = training.soft_labels.config
    return balanced_config(config, losses, training.host.parameters(), RATIO)


def main(steps: int = 60, batch_size: int = 32) -> tuple[LossConfig, list[tuple[float, float]]]:
    """Train; the balanced settings, and the hinge and the soft-label loss of every step."""
    torch.manual_seed(0)
    history = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        # The paper's weights for SAF.
        paper = LossConfig(terms=("csa", "usa"), alpha=1.0, beta=0.75)
        training = HingeTraining(data, paper)
        config = balance(training, caption_batches(data.store, batch_size, MEASURED_BATCHES))
        training.soft_labels = CUSALoss(config)
        groups = [
            {"params": training.host.parameters()},
            *training.soft_labels.param_groups(),
        ]
        optimizer = torch.optim.AdamW(groups, lr=3e-3)
        for caption_rows in caption_batches(data.store, batch_size, steps):
            hinge, soft_labels = training.losses(caption_rows)
            optimizer.zero_grad()
            (hinge + soft_labels).backward()
            optimizer.step()
            history.append((hinge.item(), soft_labels.item()))
    return config, history


if __name__ == "__main__":
    config, history = main()
    print(f"alpha {config.alpha:.3g}, beta {config.beta:.3g}")
    for name, first, last in zip(("hinge", "soft labels"), history[0], history[-1], strict=True):
        print(f"{name}: {first:.4f} -> {last:.4f}")

"""A host on precomputed region features: rows by id, and a text teacher alone.

VSE-infinity, SCAN, VSRN and SGRAF read regions that a detector found, in an order of their own, and
never open a picture. Their rows are found by image id; without an image teacher, CSA and USA have
their text direction.

Run it: ``python docs/examples/region_features.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cusa import CUSALoss, Teachers

from made_up import N_WORDS, MadeUp, caption_batches, make_data

REGION_DIM = 48


def detect_regions(data: MadeUp, folder: Path) -> None:
    """Write regions.npy, float32 ``[n_images, 4, 48]``, and the image ids in the same order.

    It stands for the detector; with real data, you have such files already.
    """
    quarters = data.pixels.unfold(2, 16, 16).unfold(3, 16, 16)  # [n, 3, 2, 2, 16, 16]
    means = quarters.unflatten(4, (4, 4)).unflatten(6, (4, 4)).mean(dim=(5, 7))
    regions = means.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).numpy()
    order = np.random.default_rng(0).permutation(len(regions))
    image_ids = data.store.split("train").image_ids
    np.save(folder / "regions.npy", regions[order])
    ids_in_order = [image_ids[row] for row in order.tolist()]
    (folder / "regions.txt").write_text("\n".join(ids_in_order))


class RegionHost(nn.Module):
    """Embeds regions and words, and has a uni-modal head for captions."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.regions = nn.Sequential(nn.Linear(REGION_DIM, dim), nn.GELU(), nn.Linear(dim, dim))
        self.words = nn.Sequential(nn.EmbeddingBag(N_WORDS, dim), nn.GELU(), nn.Linear(dim, dim))
        self.uni_text = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))

    def forward(
        self, regions: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarities ``[B, B]`` of image i and caption j; captions' uni-modal features."""
        image_features = F.normalize(self.regions(regions).amax(dim=1), dim=-1)
        words = self.words(tokens)
        text_features = F.normalize(words, dim=-1)
        return image_features @ text_features.T, self.uni_text(words)


def main(steps: int = 60, batch_size: int = 32) -> list[float]:
    """Train; the loss of every step."""
    torch.manual_seed(0)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), teachers=("words",))
        detect_regions(data, Path(folder))
        host = RegionHost()

        teachers = Teachers(data.store, "train")
        regions = torch.from_numpy(np.load(Path(folder) / "regions.npy"))
        image_ids = (Path(folder) / "regions.txt").read_text().split()
        position_of_image = np.empty(len(image_ids), np.int64)
        position_of_image[teachers.split.image_rows(image_ids)] = np.arange(len(image_ids))
        loss_fn = CUSALoss()
        groups = [{"params": host.parameters()}, *loss_fn.param_groups()]
        optimizer = torch.optim.AdamW(groups, lr=3e-3)
        for caption_rows in caption_batches(data.store, batch_size, steps):
            rows = teachers.rows(caption_rows)
            positions = position_of_image[rows.image_ids]
            similarity, uni_text_features = host(regions[positions], data.tokens[caption_rows])
            terms = loss_fn.on_similarities(
                similarity,
                uni_text_features=uni_text_features,
                teacher_text=rows.text,
                image_ids=rows.image_ids,
            )
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            losses.append(terms.total.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

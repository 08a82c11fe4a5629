"""CUSALoss in a LightningModule: trained, validated, saved and resumed by Lightning's Trainer.

Run it: ``python docs/examples/lightning_module.py`` (needs ``lightning``)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cusa import CUSALoss, EmbeddingStore, Teachers, collate_joined, join

from made_up import WORDS, make_data


class Pairs(Dataset):
    """Your data set: the pixels and tokens of each caption's pair, in the order of its ids."""

    def __init__(self, store: EmbeddingStore, split: str) -> None:
        self.root = store.image_root
        self.split = store.split(split)

    def __len__(self) -> int:
        return self.split.n_captions

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 ``[3, 32, 32]`` and int64 ``[8]``."""
        image_row = self.split.caption_image[number]
        picture = Image.open(self.root / self.split.image_paths[image_row]).convert("RGB")
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        words = self.split.captions[number].split()
        return pixels, torch.tensor([WORDS.index(word) for word in words])


class SoftLabelModule(L.LightningModule):
    """Two encoders with two heads each, and the loss.

    The loss is a submodule: its temperatures are in the checkpoint, on the right device, and under
    DDP in the gradients that are averaged.
    """

    def __init__(self, store: EmbeddingStore, batch_size: int = 32) -> None:
        super().__init__()
        self.store = store
        self.batch_size = batch_size
        self.image_trunk = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.GELU())
        self.text_trunk = nn.Sequential(nn.EmbeddingBag(len(WORDS), 64), nn.GELU())
        self.heads = nn.ModuleDict()
        for name in ("image", "text", "uni_image", "uni_text"):
            self.heads[name] = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32))
        self.loss = CUSALoss(gather=True)
        self.teachers = {split: Teachers(store, split) for split in ("train", "val")}

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        """Return the loss of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: Any, number: int) -> None:
        """Log the loss of a batch, with the teachers' rows of val."""
        self._loss(batch, "val")

    def _loss(self, batch: Any, split: str) -> torch.Tensor:
        (pixels, tokens), caption_rows = batch
        teachers = self.teachers[split].rows(caption_rows, self.device)
        image_features, text_features = self.image_trunk(pixels), self.text_trunk(tokens)
        terms = self.loss(
            self.heads["image"](image_features),
            self.heads["text"](text_features),
            self.heads["uni_image"](image_features),
            self.heads["uni_text"](text_features),
            teachers.image,
            teachers.text,
            teachers.image_ids,
        )
        values = {f"{split}_{name}": value for name, value in terms._asdict().items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(pixels))
        return terms.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, which does not decay the temperatures."""
        model = nn.ModuleList([self.image_trunk, self.text_trunk, self.heads])
        groups = [{"params": model.parameters(), "weight_decay": 0.01}, *self.loss.param_groups()]
        return torch.optim.AdamW(groups, lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        """Return the pairs in an order that depends on the steps done, so that it can resume."""
        # Not on current_epoch, which is still that of the checkpoint when training resumes.
        generator = torch.Generator().manual_seed(self.global_step)
        n_pairs = self.store.split("train").n_captions
        order = torch.randperm(n_pairs, generator=generator).tolist()
        # As a list, since Lightning begins the loader twice when training resumes.
        return self._loader("train", sampler=order, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Return the pairs of val."""
        return self._loader("val")

    def _loader(self, name: str, **settings: Any) -> DataLoader:
        split = self.store.split(name)
        joined = join(Pairs(self.store, name), split, caption_ids=list(split.caption_ids))
        return DataLoader(joined, self.batch_size, collate_fn=collate_joined, **settings)


def fit(
    store: EmbeddingStore, folder: Path, epochs: int, checkpoint: Path | None = None
) -> L.Trainer:
    """Train until an epoch, from a checkpoint if one is given; the trainer afterwards."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,  # each epoch has an order of its own
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(SoftLabelModule(store), ckpt_path=checkpoint)
    return trainer


def main(folder: Path, epochs: int = 15) -> L.Trainer:
    """Train on made-up data in ``folder``; the trainer afterwards."""
    return fit(make_data(folder).store, folder / "out", epochs)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer = main(Path(folder))
        for name in ("train_total", "val_total"):
            print(name, round(trainer.callback_metrics[name].item(), 4))
        print("temperatures", trainer.lightning_module.loss.temperatures())

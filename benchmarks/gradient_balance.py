"""How large the soft labels' gradient is beside that of the host's own loss, by training step.

    python benchmarks/gradient_balance.py STORE --out benchmarks/results/gradient_balance.json

STORE has an image and a text teacher. The student is an MLP on their rows; it is trained with the
paper's setting for CLIP, and with the hinge loss of the hardest negatives of VSE++ and SGRAF beside
the paper's weights for SAF. `balanced_config` measures on batches that are not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from cusa.train.loss.balance import balanced_config
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.teacher_rows import Teachers

from timing import machine

SMOKE = ("{store} --steps 2 --batch-size 8",)
MEASURED_BATCHES = 4
MARGIN = 0.2  # VSE++'s and SGRAF's
PAPER_WEIGHTS = {"contrastive": (0.1, 0.5), "hinge": (1.0, 0.75)}  # table 7: CLIP, SAF


class Encoder(nn.Module):
    """A layer that both losses train, and a cross-modal and a uni-modal head."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(in_dim, 512), nn.GELU())
        self.cross = nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 256))
        self.uni = nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 256))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-modal and uni-modal features of stored rows."""
        features = self.trunk(rows.float())
        return self.cross(features), self.uni(features)


def max_hinge(similarity: Tensor, image_ids: Tensor) -> Tensor:
    """The violations of the margin by each query's hardest negative, summed."""
    positives = similarity.diag()
    is_positive = image_ids[:, None] == image_ids
    to_captions = (MARGIN + similarity - positives[:, None]).masked_fill(is_positive, 0)
    to_images = (MARGIN + similarity - positives).masked_fill(is_positive, 0)
    return to_captions.clamp(min=0).amax(dim=1).sum() + to_images.clamp(min=0).amax(dim=0).sum()


class Training(nn.Module):
    """A student with a host's loss and soft labels."""

    def __init__(self, teachers: Teachers, host: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        rows = teachers.rows([0])
        self.teachers = teachers
        self.host = host
        self.image = Encoder(rows.image.shape[1])
        self.text = Encoder(rows.text.shape[1])
        alpha, beta = PAPER_WEIGHTS[host]
        self.config = LossConfig(terms=("csa", "usa"), alpha=alpha, beta=beta)
        self.soft_labels = CUSALoss(self.config)
        self.contrastive = CUSALoss(LossConfig(terms=("contrastive",)))

    def losses(self, caption_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The host's loss and that of the soft labels."""
        rows = self.teachers.rows(caption_rows)
        image_features, uni_image_features = self.image(rows.image)
        text_features, uni_text_features = self.text(rows.text)
        terms = self.soft_labels(
            image_features,
            text_features,
            uni_image_features,
            uni_text_features,
            rows.image,
            rows.text,
        )
        if self.host == "contrastive":
            own = self.contrastive(image_features, text_features, image_ids=rows.image_ids)
            return own.total, terms.total
        similarity = F.normalize(image_features) @ F.normalize(text_features).T
        return max_hinge(similarity, rows.image_ids), terms.total


def batches(teachers: Teachers, size: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Random caption rows."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        yield rng.choice(teachers.trainable_captions, size, replace=False)


def measure(training: Training, batch_size: int) -> dict[str, float]:
    """Values of both losses, and the norm of the soft labels' gradient over the host's."""
    values = []

    def losses() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in batches(training.teachers, batch_size, MEASURED_BATCHES, seed=1):
            pair = training.losses(rows)
            values.append([loss.item() for loss in pair])
            yield pair

    encoders = [*training.image.parameters(), *training.text.parameters()]
    balanced = balanced_config(training.config, losses(), encoders, ratio=1.0)
    host_value, soft_label_value = np.mean(values, axis=0).tolist()
    return {
        "host": host_value,
        "soft_labels": soft_label_value,
        "ratio": training.config.alpha / balanced.alpha,
    }


@click.command()
@click.argument("store", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(1), default=240, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(store: Path, steps: int, batch_size: int, out: Path | None) -> None:
    """Measure, print a table, write the figures to --out."""
    teachers = Teachers(store, "train")
    figures: dict[str, dict[int, dict[str, float]]] = {}
    table = Table("host's loss", "step", "its value", "soft labels", "ratio of gradient norms")
    for host in PAPER_WEIGHTS:
        training = Training(teachers, host)
        optimizer = torch.optim.AdamW(training.parameters(), lr=2e-4)
        figures[host] = {0: measure(training, batch_size)}
        for step, rows in enumerate(batches(teachers, batch_size, steps, seed=0), start=1):
            own, soft_labels = training.losses(rows)
            optimizer.zero_grad()
            (own + soft_labels).backward()
            optimizer.step()
            if step in (max(1, steps // 10), steps):
                figures[host][step] = measure(training, batch_size)
        for step, row in figures[host].items():
            cells = (f"{row['host']:.3g}", f"{row['soft_labels']:.2g}", f"{row['ratio']:.2g}")
            table.add_row(host, str(step), *cells)
    Console().print(table)
    if out is not None:
        results = {"machine": machine(), "batch_size": batch_size, "figures": figures}
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

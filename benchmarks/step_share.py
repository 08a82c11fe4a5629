"""What the soft-label terms add to a training step of CLIP ViT-B/32.

    python benchmarks/step_share.py --out benchmarks/results/step_share.json

Random weights, images and tokens in memory, the trainer's student with its four heads, AdamW. Steps
with the contrastive term alone and steps with all of CUSA take turns on the same student and batch;
the figure is the median over rounds of CUSA's time over that of the contrastive step beside it. A
step takes seconds on a CPU and the terms take milliseconds, so the loss is also timed by itself, on
features of the same shape: its share is the difference over the step's time.
"""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from cusa.cli.console import quiet_libraries
from cusa.data.environment import cpu_count
from cusa.train.loss.config import TERMS, LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.student import Student
from cusa.train.towers.tower import Tower, Towers

from timing import in_turns

SMOKE = ("--batch-size 2 --layers 1 --rounds 1 --loss-rounds 1",)
TOKENS = 77


class OneSide(nn.Module):
    """One side of a CLIPModel."""

    def __init__(self, model: Any, side: str) -> None:
        super().__init__()
        self.model, self.side = (model, side)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features, ``[n, 512]``."""
        return getattr(self.model, f"get_{self.side}_features")(inputs).pooler_output


@click.command()
@click.option("--device", default="cpu")
@click.option("--batch-size", default=32)
@click.option("--rounds", default=12)
@click.option("--loss-rounds", default=200)
@click.option("--layers", default=12, help="Of each tower.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str, batch_size: int, rounds: int, loss_rounds: int, layers: int, out: Path | None
) -> None:
    """Measure, print, write the figures to --out."""
    from transformers import CLIPConfig, CLIPModel

    quiet_libraries()
    torch.manual_seed(0)
    towers = {f"{side}_config": {"num_hidden_layers": layers} for side in ("text", "vision")}
    model = CLIPModel(CLIPConfig(**towers))
    image_tower = Tower(OneSide(model, "image"), dim=512)
    text_tower = Tower(OneSide(model, "text"), dim=512)
    student = Student(Towers(image_tower, text_tower), embed_dim=None).to(device)
    losses = {
        name: CUSALoss(LossConfig(terms=TERMS[name])).to(device) for name in ("contrastive", "cusa")
    }
    parameters = {id(p): p for m in (student, *losses.values()) for p in m.parameters()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-5)
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    tokens = torch.randint(0, 49000, (batch_size, TOKENS), device=device)
    teachers = [torch.randn(batch_size, dim, device=device).half() for dim in (512, 768)]
    ids = torch.arange(batch_size, device=device)
    reduced = torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")

    def step(name: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        with reduced:
            image, text = student.encode_image(images), student.encode_text(tokens)
            terms = losses[name](image.cross, text.cross, image.uni, text.uni, *teachers, ids)
        terms.total.backward()
        optimizer.step()

    features = [torch.randn(batch_size, 512, device=device, requires_grad=True) for _ in range(4)]

    def loss_alone(name: str) -> None:
        losses[name](*features, *teachers, ids).total.backward()

    names = ("contrastive", "cusa")
    steps = in_turns({name: lambda name=name: step(name) for name in names}, rounds)  # type: ignore[misc]
    alone = in_turns({name: lambda name=name: loss_alone(name) for name in names}, loss_rounds)  # type: ignore[misc]
    base = statistics.median(steps["contrastive"])
    medians = {name: statistics.median(alone[name]) for name in names}
    results = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.platform(),
        "cores": cpu_count(),
        "torch": torch.__version__,
        "batch_size": batch_size,
        "step_seconds": {name: statistics.median(steps[name]) for name in names},
        "step_cusa_over_contrastive": statistics.median(
            a / b for a, b in zip(steps["cusa"], steps["contrastive"], strict=True)
        ),
        "loss_seconds": medians,
        "soft_label_share": (medians["cusa"] - medians["contrastive"]) / base,
    }
    print(json.dumps(results, indent=1))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

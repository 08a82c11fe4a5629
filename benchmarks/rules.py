"""The label rules: the time of each over that of the paper's loss.

    python benchmarks/rules.py --out benchmarks/results/rules.json

Forward and backward of ``CUSALoss`` on features of d = 512 and stored rows of 512 (float16), two
captions an image. A rule stands beside the contrastive term, where the paper's loss has CSA and
USA. The ways take turns; a ratio is the median over rounds of a rule's time over that of the
paper's loss in the same round.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, get_args

import click
import torch
from rich.console import Console
from rich.table import Table

from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.features import FeatureDims
from cusa.train.loss.rules.settings import RuleName

from timing import in_turns, machine

SMOKE = ("--sizes 8 --rounds 2",)
DIM = 512
PAPER = "cusa"


class Case:
    """Features and teacher rows of B pairs; a call is a forward and a backward pass.

    Args:
        n_pairs: B.
        config: Settings of the loss.
        device: Device of the features; rows are on it, too.
    """

    def __init__(
        self,
        n_pairs: int,
        config: LossConfig,
        device: str,
    ) -> None:
        torch.manual_seed(0)
        rows = [torch.randn(n_pairs, DIM, device=device) for _ in range(8)]
        self.features = [matrix.requires_grad_() for matrix in rows[:4]]
        self.teachers = [matrix.half() for matrix in rows[4:6]]
        self.pair = (rows[6].half(), rows[7].half())
        self.image_ids = torch.arange(n_pairs, device=device) // 2
        self.loss = CUSALoss(config, feature_dims=FeatureDims(DIM, DIM, DIM)).to(device)

    def __call__(self) -> None:
        """Forward and backward."""
        for matrix in self.features:
            matrix.grad = None
        terms = self.loss(
            *self.features, *self.teachers, self.image_ids, cross_teachers=[self.pair]
        )
        terms.total.backward()


def measure(n_pairs: int, rounds: int, device: str) -> dict[str, Any]:
    """Measure the paper's loss and every rule on batches of one size."""
    configs = {PAPER: LossConfig()}
    for rule in get_args(RuleName):
        if rule != PAPER:
            configs[rule] = LossConfig(terms=("contrastive",), rule=rule)
    cases = {name: Case(n_pairs, config, device) for name, config in configs.items()}
    times = in_turns(cases, rounds)
    ratios = {}
    for name, seconds in times.items():
        pairs = zip(seconds, times[PAPER], strict=True)
        ratios[name] = statistics.median(own / paper for own, paper in pairs)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {"batch_size": n_pairs, "rounds": rounds, "seconds": medians, "over_cusa": ratios}


@click.command()
@click.option("--sizes", default="128,4096", help="Batch sizes.")
@click.option("--rounds", default=0, help="By default, 100 for small batches, 7 for large ones.")
@click.option("--device", default="cpu")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    sizes: str,
    rounds: int,
    device: str,
    out: Path | None,
) -> None:
    """Measure, print a table, write the figures to --out."""
    results: dict[str, Any] = {"machine": machine(), "device": device, "sizes": []}
    for n_pairs in map(int, sizes.split(",")):
        default_rounds = 100 if n_pairs <= 512 else 7
        results["sizes"].append(measure(n_pairs, rounds or default_rounds, device))
    table = Table("rule")
    for figures in results["sizes"]:
        table.add_column(f"ms at {figures['batch_size']:,}", justify="right")
        table.add_column("over cusa", justify="right")
    for name in results["sizes"][0]["seconds"]:
        cells = []
        for figures in results["sizes"]:
            cells += [f"{1e3 * figures['seconds'][name]:,.2f}", f"{figures['over_cusa'][name]:.2f}"]
        table.add_row(name, *cells)
    Console(width=100).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

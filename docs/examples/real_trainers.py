"""The real trainers, one after another, on one store: trained, stopped, resumed and evaluated.

Run it: ``python docs/examples/real_trainers.py`` (needs what ``pip install 'cusa[test]'`` brings)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hf_trainer
import sentence_transformers_trainer
import torch

from cusa.data.store.reader import EmbeddingStore

from made_up import make_clip, make_data

SETTINGS = {
    "lr_scheduler_type": "constant",  # that of a run that is stopped early is that of the whole one
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}


class Result(NamedTuple):
    """What a trainer did.

    Attributes:
        package: The trainer's package.
        losses: The loss at each step.
        val_loss: The loss on val after the last step.
        temperatures: The temperatures after the last step, by name.
        resumed_equally: Whether a run that was stopped and resumed ends bit for bit like this one.
    """

    package: str
    losses: list[float]
    val_loss: float
    temperatures: dict[str, float]
    resumed_equally: bool


def run_transformers(store: EmbeddingStore, clip: Path, folder: Path, steps: int) -> Result:
    """Run Hugging Face's Trainer."""
    trainers = _train_and_resume(hf_trainer.make_trainer, store, clip, folder, steps)
    return _result("transformers", *trainers, loss=lambda trainer: trainer.model.loss)


def run_sentence_transformers(
    store: EmbeddingStore, clip: Path, folder: Path, steps: int
) -> Result:
    """Run SentenceTransformerTrainer."""
    make_trainer = sentence_transformers_trainer.make_trainer
    trainers = _train_and_resume(make_trainer, store, clip, folder, steps)
    return _result("sentence-transformers", *trainers, loss=lambda trainer: trainer.loss.cusa)


RUNS = (run_transformers, run_sentence_transformers)


def _train_and_resume(
    make_trainer: Callable[..., Any], store: EmbeddingStore, clip: Path, folder: Path, steps: int
) -> tuple[Any, Any]:
    """Train once in one go, and once with a stop after half of the steps; both trainers."""
    whole = make_trainer(store, clip, folder / "whole", steps, **SETTINGS)
    whole.train()
    make_trainer(store, clip, folder / "stopped", steps // 2, **SETTINGS).train()
    resumed = make_trainer(store, clip, folder / "stopped", steps, **SETTINGS)
    checkpoint = folder / "stopped" / f"checkpoint-{steps // 2}"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    return whole, resumed


def _result(package: str, whole: Any, resumed: Any, loss: Callable[[Any], Any]) -> Result:
    losses = [float(entry["loss"]) for entry in whole.state.log_history if "loss" in entry]
    states = []
    for trainer in (whole, resumed):
        states.append({**trainer.model.state_dict(), **loss(trainer).state_dict()})
    is_equal = [torch.equal(value, states[1][name]) for name, value in states[0].items()]
    val_loss = whole.evaluate()["eval_loss"]
    temperatures = loss(whole).temperatures()
    resumed_equally = all(is_equal) and resumed.evaluate()["eval_loss"] == val_loss
    return Result(package, losses, val_loss, temperatures, resumed_equally)


def main(folder: Path, steps: int = 2) -> list[Result]:
    """Run all trainers on made-up data in ``folder``."""
    store, clip = make_data(folder).store, make_clip(folder / "clip")
    results = []
    for run in RUNS:
        results.append(run(store, clip, folder / run.__name__, steps))
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        results = main(Path(folder))
    print(f"{'trainer':30} {'loss':18} {'on val':8} {'tau':10} resumed")
    for result in results:
        name = f"{result.package} {version(result.package)}"
        losses = f"{result.losses[0]:.4f} -> {result.losses[-1]:.4f}"
        resumed = "bit for bit" if result.resumed_equally else "DIFFERS"
        tau = result.temperatures["tau"]
        print(f"{name:30} {losses:18} {result.val_loss:<8.4f} {tau:<10.6f} {resumed}")

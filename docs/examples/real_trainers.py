"""The real trainers, one after another, on one store: trained, stopped, resumed and evaluated.

Run it: ``python docs/examples/real_trainers.py`` (needs what ``pip install 'cusa[test,open_clip]'``
brings)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hf_trainer
import sentence_transformers_trainer
import torch

from cusa import EmbeddingStore

from made_up import make_clip, make_data

SETTINGS = {
    "lr_scheduler_type": "constant",  # that of a run that is stopped early is that of the whole one
    "save_strategy": "steps",
    "save_steps": 1,
}
TINY_OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 8, "head_width": 4, "patch_size": 16},
    "text_cfg": {"context_length": 16, "width": 8, "heads": 2, "layers": 1},
}


class Result(NamedTuple):
    """What a trainer did.

    Attributes:
        package: The trainer's package.
        val_loss: The loss on val after the last step.
        tau_csa: The temperature of CSA after the last step.
        resumed_equally: Whether a run that was stopped and resumed ends bit for bit like this one.
    """

    package: str
    val_loss: float
    tau_csa: float
    resumed_equally: bool


def run_transformers(store: EmbeddingStore, clip: Path, folder: Path, steps: int) -> Result:
    """Run Hugging Face's Trainer."""
    trainers = _train_and_resume(hf_trainer.make_trainer, store, clip, folder, steps)
    return _result("transformers", *trainers, loss=lambda trainer: trainer.model.loss)


def run_sentence_transformers(
    store: EmbeddingStore, clip: Path, folder: Path, steps: int
) -> Result:
    """Run sentence-transformers' trainer."""
    make_trainer = sentence_transformers_trainer.make_trainer
    trainers = _train_and_resume(make_trainer, store, clip, folder, steps)
    return _result("sentence-transformers", *trainers, loss=lambda trainer: trainer.loss.cusa)


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
    states = []
    for trainer in (whole, resumed):
        states.append({**trainer.model.state_dict(), **loss(trainer).state_dict()})
    val_loss = whole.evaluate()["eval_loss"]
    is_equal = _are_equal(*states) and resumed.evaluate()["eval_loss"] == val_loss
    return Result(package, val_loss, loss(whole).temperatures()["tau_csa"], is_equal)


def _are_equal(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in state.items())


def run_open_clip(store: EmbeddingStore, clip: Path, folder: Path, steps: int) -> Result:
    """Run open_clip's own ``main.py`` on a tiny model of its own, an epoch a step."""
    from cusa.hosts.open_clip.trainer import train

    arguments = _open_clip_arguments(store, folder)
    checkpoints = []
    for name, runs in (("whole", [steps]), ("stopped", [steps // 2, steps])):
        for epochs in runs:
            logs = ["--logs", str(folder / name), "--epochs", str(epochs)]
            if epochs != runs[0]:
                logs += ["--resume", "latest"]
            train(store.path, [*arguments, *logs])
        checkpoints.append(folder / name / "run" / "checkpoints")
    states = [torch.load(path / f"epoch_{steps}.pt")["state_dict"] for path in checkpoints]
    results = [(path / "results.jsonl").read_text().splitlines()[-1] for path in checkpoints]
    val_loss = json.loads(results[0])["clip_val_loss"]
    is_equal = _are_equal(*states) and results[0] == results[1]
    tau_csa = states[0]["soft_labels.cusa.tau_csa"].item()
    return Result("open_clip_torch", val_loss, tau_csa, is_equal)


def _open_clip_arguments(store: EmbeddingStore, folder: Path) -> list[str]:
    """Write what open_clip reads: a table of each split, and its model's configuration."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_OPEN_CLIP}))
    settings = {
        "model": f"local-dir:{model}",
        "name": "run",
        "batch-size": store.split("train").n_captions,
        "lr": 1e-2,
        "lr-scheduler": "const",
        "warmup": 0,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    for name in ("train", "val"):
        split = store.split(name)
        lines = ["filepath\ttitle"]
        for caption, image_row in zip(split.captions, split.caption_image.tolist(), strict=True):
            lines.append(f"{store.image_root / split.image_paths[image_row]}\t{caption}")
        settings[f"{name}-data"] = folder / f"{name}.tsv"
        settings[f"{name}-data"].write_text("\n".join(lines) + "\n")
    arguments = []
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    return arguments


RUNS = (run_transformers, run_sentence_transformers, run_open_clip)


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
    print(f"{'trainer':30} {'loss on val':12} {'tau of CSA':12} resumed")
    for result in results:
        name = f"{result.package} {version(result.package)}"
        resumed = "bit for bit" if result.resumed_equally else "DIFFERS"
        print(f"{name:30} {result.val_loss:<12.4f} {result.tau_csa:<12.6f} {resumed}")

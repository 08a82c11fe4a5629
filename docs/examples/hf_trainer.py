"""CUSALoss under Hugging Face's Trainer: a CLIPModel with the paper's four heads.

Run it: ``python docs/examples/hf_trainer.py`` (needs ``accelerate`` and ``datasets``), or in two
processes: ``accelerate launch --cpu --num_processes 2 docs/examples/hf_trainer.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, CLIPModel, TrainingArguments

from cusa import CUSALoss, EmbeddingStore
from cusa.hosts.transformers import (
    LABEL_NAMES,
    SoftLabelCollator,
    SoftLabelModel,
    SoftLabelTrainer,
    pairs_dataset,
)

from made_up import make_clip, make_data


def make_trainer(
    store: EmbeddingStore, clip: Path, folder: Path, steps: int, **settings: Any
) -> SoftLabelTrainer:
    """Make a trainer that writes to ``folder``; ``settings`` are further TrainingArguments."""
    torch.manual_seed(0)
    encoder = CLIPModel.from_pretrained(clip, trust_remote_code=False)
    model = SoftLabelModel(encoder, CUSALoss(gather=True))
    processor = AutoProcessor.from_pretrained(clip, trust_remote_code=False)
    defaults = {
        "remove_unused_columns": False,  # the collator, not the model, takes the columns
        "label_names": LABEL_NAMES,  # without them, Trainer would evaluate no loss
        "dataloader_drop_last": True,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 32,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return SoftLabelTrainer(
        model=model,
        args=TrainingArguments(str(folder), max_steps=steps, **defaults | settings),
        train_dataset=pairs_dataset(store, "train"),
        eval_dataset=pairs_dataset(store, "val"),
        data_collator=SoftLabelCollator(store, ("train", "val"), processor),
    )


def main(folder: Path, steps: int = 60) -> SoftLabelTrainer:
    """Train on made-up data in ``folder``; the trainer afterwards."""
    store = make_data(folder).store
    trainer = make_trainer(store, make_clip(folder / "clip"), folder / "out", steps)
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer = main(Path(folder))
        print(
            "loss",
            [
                round(float(entry["loss"]), 4)
                for entry in trainer.state.log_history
                if "loss" in entry
            ],
        )
        print("temperatures", trainer.model.loss.temperatures())
        print("loss on val", round(trainer.evaluate()["eval_loss"], 4))

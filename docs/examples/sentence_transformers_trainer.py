"""CUSALoss as a loss of SentenceTransformerTrainer, on a CLIP that sentence-transformers loads.

The labels of the batch say which rows of the store the pairs are: the split's number and the
caption row. Images and teachers are found by them.

Run it: ``python docs/examples/sentence_transformers_trainer.py`` (needs ``accelerate`` and
``datasets``)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer

from cusa import EmbeddingStore
from cusa.hosts.sentence_transformers import (
    SoftLabelTrainer,
    StoredSoftLabelLoss,
    pairs_dataset,
    retrieval_evaluator,
    with_uni_heads,
)

from made_up import make_clip, make_data


def make_trainer(
    store: EmbeddingStore, clip: Path, folder: Path, steps: int, **settings: Any
) -> SoftLabelTrainer:
    """Make a trainer that writes to ``folder``; ``settings`` are further training arguments."""
    splits = ("train", "val")
    torch.manual_seed(0)
    model = with_uni_heads(Transformer(str(clip)))
    loss = StoredSoftLabelLoss(model, store, splits)
    evaluator = retrieval_evaluator(store, "val", accuracy_at_k=[1, 5, 10])
    defaults = {
        "dataloader_drop_last": True,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 32,
        "learning_rate": 1e-3,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    arguments = SentenceTransformerTrainingArguments(
        str(folder), max_steps=steps, **defaults | settings
    )
    return SoftLabelTrainer(
        model,
        arguments,
        train_dataset=pairs_dataset(store, splits, "train"),
        eval_dataset=pairs_dataset(store, splits, "val"),
        loss=loss,
        evaluator=evaluator,
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
        print("temperatures", trainer.loss.cusa.temperatures())
        figures = trainer.evaluate()
        print("loss on val", round(figures["eval_loss"], 4))
        print("text-to-image R@5 on val", figures["eval_val_cosine_accuracy@5"])

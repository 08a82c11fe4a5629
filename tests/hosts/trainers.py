"""Real trainers of other libraries on made-up data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoProcessor, CLIPModel, TrainingArguments

import cusa
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.cusa_loss import CUSALoss

SPLITS = ("train", "val")
_MADE_UP = Path(cusa.__file__).parent.parent / "docs" / "examples" / "made_up.py"


class Inputs(NamedTuple):
    """A store of made-up pairs, and the folder of a tiny CLIP for them."""

    store: EmbeddingStore
    clip: Path


def make_inputs(folder: Path, **data_options: Any) -> Inputs:
    """Make the data and the model of the examples in ``folder``."""
    spec = importlib.util.spec_from_file_location("made_up_for_hosts", _MADE_UP)
    made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    return Inputs(
        made_up.make_data(folder, **data_options).store, made_up.make_clip(folder / "clip")
    )


def arguments(kind: type, folder: Path, steps: int, **changes: Any) -> Any:
    """Return training arguments: checkpoints every two steps, logs every step."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "max_steps": steps,
        # The schedule of the run that was stopped must be that of the whole one.
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-3,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_drop_last": True,
        "dataloader_pin_memory": False,
        "gradient_accumulation_steps": 2,
        "use_cpu": True,
    }
    return kind(**settings | changes)


def hugging_face(
    inputs: Inputs, folder: Path, steps: int, gather: bool = False, **changes: Any
) -> tuple[Any, Any]:
    """Make a Trainer of transformers; the trainer, and the module that it trains."""
    from cusa.hosts.transformers import (
        LABEL_NAMES,
        SoftLabelCollator,
        SoftLabelModel,
        SoftLabelTrainer,
        pairs_dataset,
    )

    torch.manual_seed(0)
    clip = CLIPModel.from_pretrained(inputs.clip, trust_remote_code=False)
    model = SoftLabelModel(clip, CUSALoss(gather=gather))
    trainer = SoftLabelTrainer(
        model=model,
        args=arguments(
            TrainingArguments,
            folder,
            steps,
            label_names=LABEL_NAMES,
            remove_unused_columns=False,
            **changes,
        ),
        train_dataset=pairs_dataset(inputs.store, "train"),
        eval_dataset=pairs_dataset(inputs.store, "val"),
        data_collator=SoftLabelCollator(
            inputs.store,
            SPLITS,
            AutoProcessor.from_pretrained(inputs.clip, trust_remote_code=False),
        ),
    )
    return trainer, model


def sentence_transformers(
    inputs: Inputs, folder: Path, steps: int, gather: bool = True, **changes: Any
) -> tuple[Any, Any]:
    """Make a trainer of sentence-transformers; the trainer, and its loss, which holds the model."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.base.modules import Transformer

    from cusa.hosts.sentence_transformers import (
        SoftLabelTrainer,
        StoredSoftLabelLoss,
        pairs_dataset,
        retrieval_evaluator,
        with_uni_heads,
    )

    torch.manual_seed(0)
    model = with_uni_heads(Transformer(str(inputs.clip)))
    loss = StoredSoftLabelLoss(model, inputs.store, SPLITS, gather_across_devices=gather)
    trainer = SoftLabelTrainer(
        model=model,
        args=arguments(SentenceTransformerTrainingArguments, folder, steps, **changes),
        train_dataset=pairs_dataset(inputs.store, SPLITS, "train"),
        eval_dataset=pairs_dataset(inputs.store, SPLITS, "val"),
        loss=loss,
        evaluator=retrieval_evaluator(inputs.store, "val"),
    )
    return trainer, loss

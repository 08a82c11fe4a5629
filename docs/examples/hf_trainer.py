"""CUSALoss under Hugging Face's Trainer: a CLIPModel with the paper's four heads.

Run it: ``python docs/examples/hf_trainer.py`` (needs ``accelerate`` and ``datasets``)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoProcessor, CLIPModel, Trainer, TrainingArguments

from cusa.data.images import load_image
from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.cusa_loss import CUSALoss

from made_up import make_clip, make_data


class ClipWithCusa(nn.Module):
    """A CLIPModel, four heads, and the loss.

    The loss is a submodule, so that its temperatures reach the optimizer and the checkpoint, and is
    computed in ``forward``, so that DDP sees them.
    """

    def __init__(self, clip: CLIPModel, loss: CUSALoss) -> None:
        super().__init__()
        self.clip, self.loss = clip, loss
        # CLIP's own temperature; the loss has another in its place.
        clip.logit_scale.requires_grad_(False)
        dim = clip.config.projection_dim
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
                for name in ("v", "t", "uni_v", "uni_t")
            }
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        teacher_image: torch.Tensor,
        teacher_text: torch.Tensor,
        image_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The loss and its terms."""
        image = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        text = self.clip.get_text_features(
            input_ids=input_ids, attention_mask=attention_mask
        ).pooler_output
        h = self.heads
        terms = self.loss(
            h["v"](image),
            h["t"](text),
            h["uni_v"](image),
            h["uni_t"](text),
            teacher_image,
            teacher_text,
            image_ids,
        )
        return {
            "loss": terms.total,
            "contrastive": terms.contrastive,
            "csa": terms.csa,
            "usa": terms.usa,
        }


class CusaTrainer(Trainer):
    """Logs the terms beside the loss, and keeps weight decay away from the temperatures."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss; the terms go to the log."""
        outputs = model(**inputs)
        if model.training and self.state.global_step % self.args.logging_steps == 0:
            self.log({name: outputs[name].item() for name in ("contrastive", "csa", "usa")})
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All that Trainer would decay, without the temperatures."""
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if not name.startswith("loss.tau")
        ]


class Collator:
    """Rows of the store to a batch: pictures, tokens, and the teachers' embeddings of them.

    Trainer has one collator for training and evaluation: each pair says which split its rows are
    of.
    """

    def __init__(self, store: EmbeddingStore, teachers: tuple[str, str], processor: Any) -> None:
        self.store, self.teachers, self.processor = store, teachers, processor

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch as keyword arguments of the model.

        Raises:
            ValueError: If the pairs are of several splits: row 0 of each is another image.
        """
        names = {pair["split"] for pair in pairs}
        if len(names) != 1:
            raise ValueError(
                f"a batch has pairs of the splits {sorted(names)}; give it those of one"
            )
        [name] = names
        split = self.store.split(name)
        image_rows, caption_rows = (
            np.array([p[k] for p in pairs]) for k in ("image_row", "caption_row")
        )
        batch = self.processor(
            images=[
                load_image(self.store.image_root / split.image_paths[i]).convert("RGB")
                for i in image_rows
            ],
            text=[split.captions[i] for i in caption_rows],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        image_teacher = self.store.embeddings(self.teachers[0], name)
        text_teacher = self.store.embeddings(self.teachers[1], name)
        return {
            **batch,
            "teacher_image": torch.from_numpy(image_teacher.gather(image_rows)),
            "teacher_text": torch.from_numpy(text_teacher.gather(caption_rows)),
            "image_ids": torch.from_numpy(image_rows),
        }


def pairs_of(store: EmbeddingStore, name: str) -> Dataset:
    """The pairs of a split, by its name and rows."""
    split = store.split(name)
    # Rows that precompute skipped (--on-error skip) hold NaN, and the loss refuses them: leave
    # their pairs out.
    no_image, no_caption = store.skipped(name)
    has_image = ~np.isin(split.caption_image, no_image)
    has_caption = ~np.isin(np.arange(split.n_captions), no_caption)
    caption_rows = np.flatnonzero(has_image & has_caption)
    image_rows = split.caption_image[caption_rows]
    return Dataset.from_dict(
        {"split": [name] * len(caption_rows), "image_row": image_rows, "caption_row": caption_rows}
    )


def main(folder: Path, steps: int = 60) -> CusaTrainer:
    """Train on made-up data in ``folder``; the trainer afterwards."""
    store = make_data(folder).store
    clip = make_clip(folder / "clip")

    torch.manual_seed(0)
    model = ClipWithCusa(CLIPModel.from_pretrained(clip, trust_remote_code=False), CUSALoss())
    processor = AutoProcessor.from_pretrained(clip, trust_remote_code=False)
    trainer = CusaTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "out"),
            remove_unused_columns=False,  # the collator, not the model, takes the columns
            label_names=["image_ids"],  # without a name of labels, Trainer would evaluate no loss
            dataloader_drop_last=True,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            max_steps=steps,
            learning_rate=1e-3,
            weight_decay=0.01,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=pairs_of(store, "train"),
        eval_dataset=pairs_of(store, "val"),
        data_collator=Collator(store, ("vision", "words"), processor),
    )
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

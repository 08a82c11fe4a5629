"""CUSALoss as a loss of SentenceTransformerTrainer, on a CLIP that sentence-transformers loads.

The labels of the batch say which rows of the store the pairs are: the split's number and the
caption row. Images and teachers are found by them.

Run it: ``python docs/examples/sentence_transformers_trainer.py`` (needs ``accelerate`` and
``datasets``)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from datasets import Dataset, Image
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Dense, Transformer
from torch import nn

from cusa.data.store.reader import EmbeddingStore
from cusa.train.loss.cusa_loss import CUSALoss

from made_up import make_clip, make_data


class StoredSoftLabelLoss(nn.Module):
    """CUSALoss for pairs of an image, a caption, and a label: split number and caption row.

    The trainer has one loss for training and evaluation. Caption row 0 of each split is another
    caption, so the rows alone would give an evaluation the teachers' embeddings of the training
    captions, and a wrong ``eval_loss``.

    The trainer gives the parameters of its loss to the optimizer, so the temperatures are learned.
    The heads are part of the model, so that they are saved with it.

    Args:
        model: The model; gives ``sentence_embedding``, ``uni_image_embedding`` and
            ``uni_text_embedding``.
        store: The store.
        splits: The splits, by the numbers that the labels have for them.
        image_teacher: Name of a teacher in the store.
        text_teacher: Name of a teacher in the store.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        store: EmbeddingStore,
        splits: tuple[str, ...],
        image_teacher: str,
        text_teacher: str,
    ) -> None:
        super().__init__()
        self.model, self.cusa = model, CUSALoss()
        self.caption_images = [store.split(name).caption_image for name in splits]
        self.image_teachers = [store.embeddings(image_teacher, name) for name in splits]
        self.text_teachers = [store.embeddings(text_teacher, name) for name in splits]

    def forward(
        self, sentence_features: list[dict[str, torch.Tensor]], labels: torch.Tensor
    ) -> torch.Tensor:
        """The loss of a batch of one split; the trainer passes the columns in their order."""
        images, texts = (self.model(features) for features in sentence_features)
        splits, caption_rows = labels.cpu().numpy().T
        [split] = set(splits.tolist())  # the trainer mixes no data sets in a batch
        image_rows = self.caption_images[split][caption_rows]
        teacher_image = torch.from_numpy(self.image_teachers[split].gather(image_rows))
        teacher_text = torch.from_numpy(self.text_teachers[split].gather(caption_rows))
        terms = self.cusa(
            images["sentence_embedding"],
            texts["sentence_embedding"],
            images["uni_image_embedding"],
            texts["uni_text_embedding"],
            teacher_image.to(labels.device),
            teacher_text.to(labels.device),
            torch.from_numpy(image_rows).to(labels.device),
        )
        # Not the terms as a dictionary: the trainer would sum it, and total alone carries
        # gradients.
        return terms.total


def with_uni_heads(clip: Transformer) -> SentenceTransformer:
    """The model, and two linear heads on its embedding: USA's for images, and its for captions."""
    # CLIP's own temperature; CUSALoss has another in its place.
    clip.model.logit_scale.requires_grad_(False)
    dim = clip.get_embedding_dimension()
    heads = [
        Dense(
            dim,
            dim,
            activation_function=nn.Identity(),
            module_input_name="sentence_embedding",
            module_output_name=n,
        )
        for n in ("uni_image_embedding", "uni_text_embedding")
    ]
    return SentenceTransformer(modules=[clip, *heads])


def pairs_of(store: EmbeddingStore, splits: tuple[str, ...], number: int) -> Dataset:
    """The pairs of a split, labelled with its number and their caption rows."""
    split = store.split(splits[number])
    columns = {
        "image": [str(store.image_root / split.image_paths[i]) for i in split.caption_image],
        "caption": split.captions[:],
        # "label" is a name that the trainer looks for.
        "label": [[number, row] for row in range(split.n_captions)],
    }
    return Dataset.from_dict(columns).cast_column("image", Image())


def main(folder: Path, steps: int = 60) -> SentenceTransformerTrainer:
    """Train on made-up data in ``folder``; the trainer afterwards."""
    store = make_data(folder).store
    clip = make_clip(folder / "clip")

    splits = ("train", "val")
    torch.manual_seed(0)
    model = with_uni_heads(Transformer(str(clip)))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "out"),
            dataloader_drop_last=True,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            max_steps=steps,
            learning_rate=1e-3,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=pairs_of(store, splits, 0),
        eval_dataset=pairs_of(store, splits, 1),
        loss=StoredSoftLabelLoss(model, store, splits, "vision", "words"),
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
        print("temperatures", trainer.loss.cusa.temperatures())
        print("loss on val", round(trainer.evaluate()["eval_loss"], 4))

"""CUSALoss as a loss of ``SentenceTransformerTrainer``, on models that embed images and texts.

The labels of a batch say which rows of the store its pairs are: the split's number and the caption
row. docs/examples/sentence_transformers_trainer.py shows it at work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from torch import nn
from transformers import TrainerCallback

from cusa.data.errors import RunError
from cusa.data.store.reader import EmbeddingStore
from cusa.hosts.pairs import SplitTeachers
from cusa.train.loss.config import LossConfig
from cusa.train.loss.cusa_loss import CUSALoss

UNI_IMAGE = "uni_image_embedding"
UNI_TEXT = "uni_text_embedding"
_LOSS_FILE = "cusa_loss.safetensors"
_CITATION = """
@inproceedings{huang2024cusa,
    title = {Cross-Modal and Uni-Modal Soft-Label Alignment for Image-Text Retrieval},
    author = {Huang, Hailang and Nie, Zhijie and Wang, Ziqiao and Shang, Ziyu},
    booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
    year = {2024},
    doi = {10.1609/aaai.v38i16.29789},
}
"""


class StoredSoftLabelLoss(nn.Module):
    """CUSALoss for pairs of an image, a caption, and a label: split number and caption row.

    The trainer gives the parameters of its loss to the optimizer, so the temperatures are learned;
    it does not save them: :class:`SoftLabelCallback` does. The heads for USA are modules of the
    model (:func:`with_uni_heads`), so that they are saved with it.

    Requirements: a model that takes images and texts; columns ``image``, ``caption``, ``label`` in
    this order (:func:`pairs_dataset`); a store with an image and a text teacher.

    Inputs: ``[(image, caption)]``; labels int64 ``[B, 2]``: split number, caption row.

    Args:
        model: The model, with the two heads of :func:`with_uni_heads`; without them, its embedding
            serves USA, too.
        store: The store.
        splits: The splits, by the numbers that the labels have for them.
        config: Settings of the loss.
        image_teacher: Name of the image teacher; by default the only one there is.
        text_teacher: Name of the text teacher; by default the only one there is.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        store: EmbeddingStore,
        splits: tuple[str, ...] = ("train", "val"),
        config: LossConfig | None = None,
        image_teacher: str | None = None,
        text_teacher: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.cusa = CUSALoss(config)
        self.teachers = SplitTeachers(store, splits, image_teacher, text_teacher)

    def forward(
        self, sentence_features: list[dict[str, torch.Tensor]], labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch of one split; the trainer passes the columns in their order.

        Args:
            sentence_features: Inputs of the images, and of the captions.
            labels: int64 ``[B, 2]``: split number and caption row.

        Returns:
            A scalar.
        """
        images, texts = (self.model(features) for features in sentence_features)
        split_numbers, caption_rows = labels.T.tolist()
        names = [self.teachers.splits[number] for number in split_numbers]
        teachers = self.teachers.of_batch(names).rows(caption_rows, labels.device)
        terms = self.cusa(
            images["sentence_embedding"],
            texts["sentence_embedding"],
            images.get(UNI_IMAGE, images["sentence_embedding"]),
            texts.get(UNI_TEXT, texts["sentence_embedding"]),
            teachers.image,
            teachers.text,
            teachers.image_ids,
        )
        # Not the terms as a dictionary: the trainer would sum it, and total alone carries
        # gradients.
        return terms.total

    @property
    def citation(self) -> str:
        """Return BibTeX for the model card, which the trainer writes."""
        return _CITATION

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"splits": list(self.teachers.splits), **self.cusa.temperatures()}


class SoftLabelCallback(TrainerCallback):
    """Saves the temperatures with each checkpoint, and restores them where training goes on.

    Args:
        loss: The loss.
    """

    def __init__(self, loss: StoredSoftLabelLoss) -> None:
        self.loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the temperatures into the checkpoint."""
        if state.is_world_process_zero:
            save_file(self.loss.cusa.state_dict(), _loss_file(args, state))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the temperatures of the checkpoint that training goes on from.

        Raises:
            RunError: If the checkpoint has none.
        """
        if state.global_step == 0:
            return
        path = _loss_file(args, state)
        if not path.is_file():
            raise RunError(
                f"{path} does not exist: the checkpoint was saved without SoftLabelCallback; "
                "train anew, or copy it into output_dir if it lies elsewhere",
                path=path,
            )
        self.loss.cusa.load_state_dict(load_file(path))


def _loss_file(args: Any, state: Any) -> Path:
    """Return the file of the temperatures in the trainer's checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _LOSS_FILE


def with_uni_heads(encoder: Any) -> SentenceTransformer:
    """Return a model with two linear heads on its embedding: USA's for images and for captions.

    Args:
        encoder: A module of sentence-transformers that embeds images and texts, such as
            ``Transformer("openai/clip-vit-base-patch32")``. Its own temperature is frozen: the loss
            has another in its place.
    """
    logit_scale = getattr(encoder.model, "logit_scale", None)
    if logit_scale is not None:
        logit_scale.requires_grad_(False)
    dim = encoder.get_embedding_dimension()
    heads = []
    for output_name in (UNI_IMAGE, UNI_TEXT):
        head = Dense(
            dim,
            dim,
            activation_function=nn.Identity(),
            module_input_name="sentence_embedding",
            module_output_name=output_name,
        )
        heads.append(head)
    return SentenceTransformer(modules=[encoder, *heads])


def pairs_dataset(store: EmbeddingStore, splits: tuple[str, ...], name: str) -> Dataset:
    """Return the pairs of a split, without those that a teacher skipped.

    Args:
        store: The store.
        splits: All splits of the loss.
        name: The split, one of them.

    Returns:
        Columns ``image`` (decoded when asked for), ``caption``, and ``label``: split number and
        caption row. "label" is a name that the trainer looks for.
    """
    split = store.split(name)
    number = splits.index(name)
    columns: dict[str, list[Any]] = {"image": [], "caption": [], "label": []}
    no_image, no_caption = store.skipped(name)
    skipped_images = set(no_image.tolist())
    skipped_captions = set(no_caption.tolist())
    for caption_row, image_row in enumerate(split.caption_image.tolist()):
        if image_row in skipped_images or caption_row in skipped_captions:
            continue
        columns["image"].append(str(store.image_root / split.image_paths[image_row]))
        columns["caption"].append(split.captions[caption_row])
        columns["label"].append([number, caption_row])
    return Dataset.from_dict(columns).cast_column("image", Image())

"""CUSALoss as a loss of ``SentenceTransformerTrainer``, for models that embed images and texts.

The label of a pair locates it in the store, by the number of its split and its caption row. For a
complete program see docs/examples/sentence_transformers_trainer.py.
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
    """CUSALoss for pairs of an image and a caption, labelled with split number and caption row.

    The trainer passes its loss's parameters to the optimizer, so the temperatures are learned, but
    does not save them; :class:`SoftLabelCallback` does. The heads for USA are modules of the model
    (:func:`with_uni_heads`), so they are saved with it.

    Requirements: a model that takes images and texts; a data set with the columns ``image``,
    ``caption`` and ``label`` in this order (:func:`pairs_dataset`); a store with an image teacher
    and a text teacher.

    Inputs: ``[(image, caption)]``; labels int64 ``[B, 2]``: split number, caption row.

    Args:
        model: The model, with the two heads of :func:`with_uni_heads`; without them, USA uses its
            embedding.
        store: The store.
        splits: Names of the splits; labels refer to them by position.
        config: Settings of the loss; ``None``: the defaults.
        image_teacher: Name of the image teacher; by default the only one there is.
        text_teacher: Name of the text teacher; by default the only one there is.

    Raises:
        StoreError: If the store has no such split or teacher.
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
        """Compute the loss of a batch from one split.

        Args:
            sentence_features: The model's inputs for the images and for the captions, in the order
                of the columns.
            labels: int64 ``[B, 2]``: split number and caption row.

        Returns:
            The loss, a float scalar.

        Raises:
            DataError: If the pairs belong to several splits.
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
        # Not a dictionary of the terms: the trainer would sum them, and only total has gradients.
        return terms.total

    @property
    def citation(self) -> str:
        """Return a BibTeX entry for the model card that the trainer writes."""
        return _CITATION

    def get_config_dict(self) -> dict[str, Any]:
        """Return splits and temperatures for the model card."""
        return {"splits": list(self.teachers.splits), **self.cusa.temperatures()}


class SoftLabelCallback(TrainerCallback):
    """Saves the temperatures with each checkpoint, and restores them when training is resumed.

    Args:
        loss: The loss.
    """

    def __init__(self, loss: StoredSoftLabelLoss) -> None:
        self.loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the temperatures to the checkpoint."""
        if state.is_world_process_zero:
            save_file(self.loss.cusa.state_dict(), _loss_file(args, state))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the temperatures from the checkpoint that training resumes from.

        Raises:
            RunError: If the checkpoint has none.
        """
        if state.global_step == 0:
            return
        path = _loss_file(args, state)
        if not path.is_file():
            raise RunError(
                f"{path} does not exist: the checkpoint was saved without SoftLabelCallback, or is "
                "not in output_dir; train anew, or copy the checkpoint there",
                path=path,
            )
        self.loss.cusa.load_state_dict(load_file(path))


def _loss_file(args: Any, state: Any) -> Path:
    """Return the path of the temperatures in the checkpoint of the trainer's current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _LOSS_FILE


def with_uni_heads(encoder: Any) -> SentenceTransformer:
    """Make a model with two linear heads on its embedding, for USA on images and on captions.

    Args:
        encoder: A module of sentence-transformers that embeds images and texts, such as
            ``Transformer("openai/clip-vit-base-patch32")``. Its own temperature is frozen, as the
            loss has one.
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
        splits: Names of the loss's splits.
        name: The split, one of them.

    Returns:
        A data set with the columns ``image`` (decoded on access), ``caption``, and ``label`` (split
        number and caption row); the trainer expects labels under that name.

    Raises:
        StoreError: If the store has no such split.
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

"""CUSALoss under ``transformers.Trainer``: a dual encoder with the paper's four heads.

For a complete program see docs/examples/hf_trainer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer

from cusa.data.images import load_image
from cusa.data.store.reader import GivenStore, opened
from cusa.data.store.teacher_choice import TeacherNames
from cusa.hosts.pairs import SplitTeachers, usable_captions
from cusa.hosts.unused_features import with_gradients_of
from cusa.train.loss.config import GivenLoss
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.teacher_set import MaybeRows

LABEL_NAMES = ["image_ids"]
_TERMS = ("contrastive", "csa", "usa", "rule")
_HEADS = ("image", "text", "uni_image", "uni_text")


class SoftLabelModel(nn.Module):
    """A dual encoder with four heads and the loss.

    The loss is a submodule, so that its temperatures reach the optimizer and the checkpoint; it is
    computed in ``forward``, so that DDP synchronises their gradients.

    Args:
        encoder: A model with ``get_image_features`` and ``get_text_features``, such as CLIPModel.
            Its own temperature is frozen, as the loss has one.
        loss: The loss.
        dim: Dimension of the encoder's features; by default its ``config.projection_dim``.
    """

    def __init__(self, encoder: Any, loss: CUSALoss, dim: int | None = None) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.loss = loss
        logit_scale = getattr(encoder, "logit_scale", None)
        if logit_scale is not None:
            logit_scale.requires_grad_(False)
        width: int = dim or encoder.config.projection_dim
        self.heads = nn.ModuleDict()
        for name in _HEADS:
            self.heads[name] = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        teacher_image: MaybeRows,
        teacher_text: MaybeRows,
        image_ids: torch.Tensor,
        cross_teachers: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> dict[str, torch.Tensor]:
        """Compute the loss and its terms, each a float scalar.

        Args:
            pixel_values: float ``[B, 3, h, w]``.
            input_ids: int64 ``[B, length]``.
            attention_mask: int64 ``[B, length]``.
            teacher_image: float16 or float32 ``[B, e]``: the image teacher's rows, those of each if
                there are several; ``None`` for a text teacher alone.
            teacher_text: float16 or float32 ``[B, e']``: the text teacher's rows likewise; ``None``
                for an image teacher alone.
            image_ids: int64 ``[B]``; equal ids are the same image.
            cross_teachers: Image rows and text rows of each cross-modal teacher.
        """
        image_features = _features(self.encoder.get_image_features(pixel_values=pixel_values))
        text_features = _features(
            self.encoder.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        )
        uni_image_features = self.heads["uni_image"](image_features)
        uni_text_features = self.heads["uni_text"](text_features)
        terms = self.loss(
            self.heads["image"](image_features),
            self.heads["text"](text_features),
            uni_image_features,
            uni_text_features,
            teacher_image,
            teacher_text,
            image_ids,
            cross_teachers=cross_teachers,
        )
        return {
            "loss": with_gradients_of(terms.total, uni_image_features, uni_text_features),
            "contrastive": terms.contrastive,
            "csa": terms.csa,
            "usa": terms.usa,
            "rule": terms.rule,
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of the temperatures, as timm's and open_clip's models do."""
        return set(map("loss.{}".format, self.loss.no_weight_decay()))


def _features(output: Any) -> torch.Tensor:
    """Return the features in an encoder's output, which is a tensor or an output object."""
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return features


class SoftLabelTrainer(Trainer):
    """A trainer that also logs the loss's terms, and does not decay the temperatures.

    Its arguments need ``label_names=LABEL_NAMES`` (without label names, Trainer does not evaluate
    the loss) and ``remove_unused_columns=False`` (the collator, not the model, takes the columns).
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the model's loss, and log its terms."""
        outputs = model(**inputs)
        if model.training and self.state.global_step % self.args.logging_steps == 0:
            terms = {}
            for name in _TERMS:
                terms[name] = outputs[name].item()
            self.log(terms)
        if return_outputs:
            return outputs["loss"], outputs
        return outputs["loss"]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that Trainer would decay, without the temperatures."""
        names = super().get_decay_parameter_names(model)
        not_decayed: set[str] = getattr(model, "no_weight_decay", set)()
        return [name for name in names if name not in not_decayed]


class SoftLabelCollator:
    """Collates pairs to a batch of pixels, tokens, and the teachers' embeddings.

    Trainer has one collator for training and evaluation, so each pair names its split.

    Args:
        store: The store, or its path.
        splits: The splits of training and evaluation.
        processor: The encoder's processor, which takes ``images`` and ``text``.
        image_teacher: Name or names of the image teachers; by default the only one there is.
        text_teacher: Name or names of the text teachers; by default the only one there is.
        cross_teacher: Name or names of the cross-modal teachers; ``None``: the only one there is if
            ``config`` needs it, or else none; an empty list: the only one there is.
        config: Settings of the loss, or values by name, which tell the teachers that it needs;
            ``None``: those of both modalities.
    """

    def __init__(
        self,
        store: GivenStore,
        splits: tuple[str, ...],
        processor: Callable[..., dict[str, torch.Tensor]],
        image_teacher: TeacherNames = None,
        text_teacher: TeacherNames = None,
        cross_teacher: TeacherNames = None,
        config: GivenLoss = None,
    ) -> None:
        store = opened(store)
        self.image_root = store.image_root
        self.teachers = SplitTeachers(
            store, splits, image_teacher, text_teacher, cross_teacher, config
        )
        self.processor = processor

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch as keyword arguments of the model.

        Raises:
            DataError: If the pairs belong to several splits.
            ImageError: If an image cannot be decoded.
        """
        names = [pair["split"] for pair in pairs]
        caption_rows = [pair["caption_row"] for pair in pairs]
        teachers = self.teachers.of_batch(names)
        teacher_batch = teachers.rows(caption_rows)
        split = teachers.split
        pictures = []
        for image_row in teacher_batch.image_ids.tolist():
            picture = load_image(self.image_root / split.image_paths[image_row])
            pictures.append(picture.convert("RGB"))
        inputs = self.processor(
            images=pictures,
            text=split.captions[caption_rows],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        return {
            **inputs,
            "teacher_image": teacher_batch.image,
            "teacher_text": teacher_batch.text,
            "image_ids": teacher_batch.image_ids,
            "cross_teachers": teacher_batch.cross,
        }


def pairs_dataset(store: GivenStore, split: str) -> Dataset:
    """Return the pairs of a split, without those that a teacher skipped.

    Returns:
        A data set with the columns ``split`` and ``caption_row``, for :class:`SoftLabelCollator`.

    Raises:
        StoreError: If the store has no such split.
    """
    caption_rows = usable_captions(store, split)
    columns = {"split": [split] * len(caption_rows), "caption_row": caption_rows}
    return Dataset.from_dict(columns)

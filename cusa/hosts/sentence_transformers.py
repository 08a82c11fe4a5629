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
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import nn
from transformers import TrainerCallback

from cusa.data.errors import RunError
from cusa.data.store.reader import GivenStore, opened
from cusa.data.store.teacher_choice import TeacherNames
from cusa.hosts.pairs import SplitTeachers, split_number, usable_captions
from cusa.hosts.unused_features import with_gradients_of
from cusa.train.loss.config import GivenLoss
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
    does not save them; :class:`SoftLabelTrainer` does. The heads for USA are modules of the model
    (:func:`with_uni_heads`), so they are saved with it.

    Requirements: a model that takes images and texts; a data set with the columns ``image``,
    ``caption`` and ``label`` in this order (:func:`pairs_dataset`); a store with an image teacher,
    a text teacher or both.

    Args:
        model: The model, with the two heads of :func:`with_uni_heads`; without them, USA uses its
            embedding.
        store: The store, or its path.
        splits: Names of the splits; labels refer to them by position.
        config: Settings of the loss, or values by name; ``None``: the defaults.
        image_teacher: Name or names of the image teachers; by default the only one there is.
        text_teacher: The same of the text teachers.
        gather_across_devices: Whether the batch is that of all processes, as for the losses of
            sentence-transformers. If not, each process learns temperatures of its own.
        cross_teacher: The same of the cross-modal teachers, if the loss needs one.

    Raises:
        StoreError: If the store has no such split or teacher.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        store: GivenStore,
        splits: tuple[str, ...] = ("train", "val"),
        config: GivenLoss = None,
        image_teacher: TeacherNames = None,
        text_teacher: TeacherNames = None,
        gather_across_devices: bool = True,
        cross_teacher: TeacherNames = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.cusa = CUSALoss(config, gather=gather_across_devices)
        self.teachers = SplitTeachers(
            store, splits, image_teacher, text_teacher, cross_teacher, config
        )

    def forward(
        self,
        sentence_features: list[dict[str, torch.Tensor]],
        labels: torch.Tensor,
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
        uni_image_features = images.get(UNI_IMAGE, images["sentence_embedding"])
        uni_text_features = texts.get(UNI_TEXT, texts["sentence_embedding"])
        teachers = self.teachers.rows(labels)
        terms = self.cusa(
            images["sentence_embedding"],
            texts["sentence_embedding"],
            uni_image_features,
            uni_text_features,
            teachers.image,
            teachers.text,
            teachers.image_ids,
            cross_teachers=teachers.cross,
        )
        # Not a dictionary of the terms: the trainer would sum them, and only total has gradients.
        return with_gradients_of(terms.total, uni_image_features, uni_text_features)

    @property
    def citation(self) -> str:
        """Return a BibTeX entry for the model card that the trainer writes."""
        return _CITATION

    def get_config_dict(self) -> dict[str, Any]:
        """Return splits and temperatures for the model card."""
        return {"splits": list(self.teachers.splits), **self.cusa.temperatures()}


class SoftLabelTrainer(SentenceTransformerTrainer):
    """A trainer that keeps the temperatures of a :class:`StoredSoftLabelLoss` in its checkpoints.

    It does not decay them, restores them when training is resumed, and those of the best checkpoint
    when it loads the best model at the end.

    Args:
        model: The model.
        args: The trainer's settings.
        loss: The loss.
        **settings: Further arguments of ``SentenceTransformerTrainer``.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments,
        *,
        loss: StoredSoftLabelLoss,
        **settings: Any,
    ) -> None:
        # The loss encodes images and captions by two calls of the model. In each, DDP would take
        # the other tower's parameters for unused.
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        super().__init__(model, args, loss=loss, **settings)
        self.add_callback(_TemperatureCallback(loss))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that the trainer would decay, without the temperatures."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.startswith("cusa.tau")]


class _TemperatureCallback(TrainerCallback):
    def __init__(self, loss: StoredSoftLabelLoss) -> None:
        self.loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the temperatures to the checkpoint."""
        if state.is_world_process_zero:
            folder = _checkpoint(args, state)
            save_file(self.loss.cusa.state_dict(), folder / _LOSS_FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the temperatures of the checkpoint that training resumes from."""
        if state.global_step > 0:
            self._restore(_checkpoint(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the temperatures of the best checkpoint, whose model the trainer has loaded."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._restore(Path(state.best_model_checkpoint))

    def _restore(self, checkpoint: Path) -> None:
        path = checkpoint / _LOSS_FILE
        if not path.is_file():
            raise RunError(
                f"{path} does not exist: the checkpoint was saved without SoftLabelTrainer, or is "
                "not in output_dir; train anew, or copy the checkpoint there",
                path=path,
            )
        self.loss.cusa.load_state_dict(load_file(path))


def _checkpoint(args: Any, state: Any) -> Path:
    """Return the folder of the checkpoint of the trainer's current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


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


def pairs_dataset(
    store: GivenStore,
    splits: tuple[str, ...],
    name: str,
) -> Dataset:
    """Return the pairs of a split, without those that a teacher skipped.

    Args:
        store: The store, or its path.
        splits: Names of the loss's splits.
        name: The split, one of them.

    Returns:
        A data set with the columns ``image`` (decoded on access), ``caption``, and ``label`` (split
        number and caption row); the trainer expects labels under that name.

    Raises:
        StoreError: If the store has no such split.
        DataError: If it is not one of the loss's.
    """
    number = split_number(splits, name)
    store = opened(store)
    split = store.split(name)
    columns: dict[str, list[Any]] = {"image": [], "caption": [], "label": []}
    for caption_row in usable_captions(store, name).tolist():
        image_row = int(split.caption_image[caption_row])
        columns["image"].append(str(store.image_root / split.image_paths[image_row]))
        columns["caption"].append(split.captions[caption_row])
        columns["label"].append([number, caption_row])
    return Dataset.from_dict(columns).cast_column("image", Image())


def retrieval_evaluator(
    store: GivenStore,
    name: str,
    **settings: Any,
) -> Any:
    """Make an evaluator that finds the images of a split by their captions.

    Args:
        store: The store, or its path.
        name: The split.
        **settings: Further arguments of ``InformationRetrievalEvaluator``.

    Returns:
        An ``InformationRetrievalEvaluator`` for the trainer's ``evaluator``. Its accuracy@k is the
        text-to-image recall at k, as a fraction; images are read from their files.

    Raises:
        StoreError: If the store has no such split.
    """
    store = opened(store)
    split = store.split(name)
    queries: dict[str, str] = {}
    corpus: dict[str, dict[str, str]] = {}
    relevant: dict[str, set[str]] = {}
    for caption_row in usable_captions(store, name).tolist():
        image_row = int(split.caption_image[caption_row])
        query_id, image_id = str(caption_row), str(image_row)
        queries[query_id] = split.captions[caption_row]
        # Named as an image: sentence-transformers takes the path of a missing file for a text.
        corpus[image_id] = {"image": str(store.image_root / split.image_paths[image_row])}
        relevant[query_id] = {image_id}
    return InformationRetrievalEvaluator(queries, corpus, relevant, name=name, **settings)

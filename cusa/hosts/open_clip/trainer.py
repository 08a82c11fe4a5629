"""open_clip's own trainer, ``open_clip_train.main``, with CSA and USA beside its loss."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import open_clip_train.data
import open_clip_train.main
import pandas
from open_clip.factory import load_state_dict
from open_clip_train.data import CsvDataset
from open_clip_train.distributed import is_using_distributed
from open_clip_train.params import parse_args
from safetensors.torch import save_file
from torch import nn

from cusa.data.errors import DataError, RunError, SettingError
from cusa.data.files import atomic_file
from cusa.data.pretrained import one_line_load_errors
from cusa.data.shell import flag_of
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.hosts.open_clip.loss import SoftLabelLoss
from cusa.hosts.open_clip.model import (
    SOFT_LABELS,
    SoftLabels,
    add_soft_labels,
    without_contrastive,
)
from cusa.hosts.open_clip.tokens import labelled_tokens
from cusa.hosts.pairs import SplitTeachers
from cusa.train.config import Config
from cusa.train.config_building import build_config, parse_settings
from cusa.train.loss.config import LossConfig

_TABLE_SUFFIXES = (".csv", ".tsv")
# Arguments of open_clip that need another model, loss or data set than those here.
_UNSUPPORTED = ("distill_model", "horovod", "torchscript", "trace", "use_naflex")
_SETTINGS = (
    "loss",
    "data.train_split",
    "data.image_teacher",
    "data.text_teacher",
    "data.cross_teacher",
)


def train(
    embeddings: Path | str,
    arguments: Sequence[str],
    settings: Sequence[str] = (),
) -> None:
    """Run ``open_clip_train.main`` with soft labels.

    Everything that the user can have got wrong is checked before open_clip makes a folder.

    Args:
        embeddings: The embedding store.
        arguments: Arguments of ``open_clip_train.main``. ``--train-data`` must be a table.
        settings: Settings of the loss and of the rows, such as ``"loss.alpha=0.2"``.

    Raises:
        SettingError: If a setting or an argument cannot be used.
        StoreError: If the store cannot be used.
        DataError: If the table cannot be read, or a pair of it is not in the store.
        RunError: If a checkpoint cannot be resumed, or open_clip refuses to start.
    """
    args = parse_args(list(arguments))
    _refuse_unsupported(args)
    config = _checked_settings(settings)
    teachers = SplitTeachers(
        EmbeddingStore(embeddings),
        (config.data.train_split,),
        config.data.image_teacher,
        config.data.text_teacher,
        config.data.cross_teacher,
        config.loss,
    )
    soft_labels = SoftLabelsInTrainer(config.loss, teachers, args)
    with (
        mock.patch.multiple(open_clip_train.main, **soft_labels.replacements()),
        mock.patch.object(open_clip_train.data, "CsvDataset", soft_labels.csv_dataset),
    ):
        status = open_clip_train.main.main(list(arguments))
    if status == -1:
        raise RunError("open_clip did not start, for the reason that it gives above")


def export_weights(checkpoint: Path, out: Path) -> None:
    """Write the weights of a checkpoint as plain open_clip loads them, without soft labels.

    Args:
        checkpoint: A checkpoint of the trainer, ``epoch_*.pt``.
        out: The new file, ``.safetensors``.

    Raises:
        RunError: If the checkpoint cannot be read, or has no soft labels.
        SettingError: If ``out`` has another suffix.
    """
    if out.suffix != ".safetensors":
        raise SettingError(f"{out} must end in .safetensors", path=out, name="out")
    with one_line_load_errors("checkpoint", str(checkpoint), RunError, "give another"):
        state = load_state_dict(str(checkpoint))
    weights = {}
    for name, value in state.items():
        if not name.startswith(f"{SOFT_LABELS}."):
            weights[name] = value.contiguous()
    if len(weights) == len(state):
        raise RunError(
            f"{checkpoint} has no soft labels; open_clip loads it as it is", path=checkpoint
        )
    with atomic_file(out) as temporary:
        save_file(weights, temporary)


def _refuse_unsupported(args: Namespace) -> None:
    """Refuse arguments of open_clip that would train without soft labels, or with other weights.

    Raises:
        SettingError: If there is one.
    """
    for name in _UNSUPPORTED:
        if getattr(args, name, None):
            raise SettingError(
                f"{flag_of(name)} cannot be used with soft labels; leave it out", name=name
            )
    is_table = args.dataset_type == "csv"
    if args.dataset_type == "auto" and args.train_data is not None:
        is_table = Path(args.train_data).suffix in _TABLE_SUFFIXES
    is_training = args.train_data is not None or args.dataset_type == "synthetic"
    if is_training and not is_table:
        raise SettingError(
            f"--train-data {args.train_data} --dataset-type {args.dataset_type}: soft labels need "
            "a table of pairs; give a .csv or .tsv file, or --dataset-type csv",
            name="train_data",
        )
    if is_using_distributed() and not args.gather_with_grad and not args.siglip:
        raise SettingError(
            "without --gather-with-grad, open_clip's gradients are smaller by the number of "
            "processes, and soft labels would weigh more; give --local-loss --gather-with-grad",
            name="gather_with_grad",
        )


def _checked_settings(pairs: Sequence[str]) -> Config:
    """Read ``["loss.alpha=0.2", ...]``.

    Raises:
        SettingError: If a setting is unknown, illegal, or open_clip's own business.
    """
    for pair in pairs:
        name = pair.partition("=")[0].strip()
        if name not in _SETTINGS and not name.startswith("loss."):
            raise SettingError(
                f"--set {name}: here it takes loss.* and {', '.join(_SETTINGS[1:])}; the "
                "arguments of open_clip decide all else",
                name=name,
            )
    config = build_config(parse_settings(pairs))
    without_contrastive(config.loss)
    return config


class SoftLabelsInTrainer:
    """What takes the place of the functions that ``open_clip_train.main`` calls.

    Args:
        config: Settings of the loss.
        teachers: The teachers' rows, of the training split alone. open_clip computes no loss of its
            validation data that needs them.
        args: The arguments of open_clip.

    Raises:
        DataError: If the training table cannot be read, or a pair of it is not in the store.
    """

    def __init__(
        self,
        config: LossConfig,
        teachers: SplitTeachers,
        args: Namespace,
    ) -> None:
        self._config = config
        self._teachers = teachers
        (self._split,) = teachers.splits
        self._table = args.train_data
        self._caption_rows = np.zeros(0, np.int64)
        if self._table is not None:
            split = teachers.of_split[self._split].split
            self._caption_rows = _rows_of_table(args, split)
        self._soft_labels: SoftLabels  # of the model, once that is made

    def replacements(self) -> dict[str, Any]:
        """Return the functions that ``open_clip_train.main`` shall call, by their names there."""
        functions: list[Callable[..., Any]] = [self.create_model_and_transforms, self.get_data]
        if hasattr(open_clip_train.main, "create_task"):
            functions.append(self.create_task)
        else:
            functions.append(self.create_loss)
        return {function.__name__: function for function in functions}

    def create_model_and_transforms(self, *arguments: Any, **options: Any) -> Any:
        """Make the model, with heads and temperatures."""
        model, *transforms = open_clip.create_model_and_transforms(*arguments, **options)
        if type(model) not in (open_clip.CLIP, open_clip.CustomTextCLIP):
            raise SettingError(
                f"--model {arguments[0]} is a {type(model).__name__}; soft labels need a CLIP or "
                "CustomTextCLIP, such as ViT-B-32",
                name="model",
            )
        self._soft_labels = add_soft_labels(model, self._config)
        return model, *transforms

    def create_loss(self, args: Namespace) -> SoftLabelLoss:
        """Make the loss, for open_clip 3."""
        return self._with_soft_labels(open_clip.create_loss(args))

    def create_task(self, args: Namespace, **options: Any) -> nn.Module:
        """Make the task, whose loss has soft labels, for open_clip 4."""
        task: Any = open_clip.create_task(args, **options)
        task.loss = self._with_soft_labels(task.loss)
        return task

    def _with_soft_labels(self, loss: nn.Module) -> SoftLabelLoss:
        return SoftLabelLoss(loss, self._soft_labels, self._teachers)

    def csv_dataset(self, path: str, *arguments: Any, **options: Any) -> Any:
        """Read a table; the tokens of the training table begin with labels."""
        dataset = CsvDataset(path, *arguments, **options)
        if path != self._table:
            return dataset
        labelled = labelled_tokens(dataset, self._caption_rows, self._teachers, self._split)
        n_left_out = len(dataset) - len(labelled)
        if n_left_out:
            logging.warning(f"{n_left_out:,} pairs are left out: a teacher skipped them")
        return labelled

    def get_data(self, args: Namespace, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Make the loaders; each epoch's order and augmentations depend on its number alone."""
        data: dict[str, Any] = open_clip_train.data.get_data(args, *arguments, **options)
        if "train" not in data:
            return data
        train_data = data["train"]
        set_epoch = train_data.set_epoch

        def begin_epoch(epoch: int) -> None:
            # open_clip seeds once: a resumed run would draw the order of the first epoch again.
            seed = args.seed + epoch * args.world_size
            open_clip_train.main.random_seed(seed, args.rank)
            set_epoch(epoch)

        train_data.set_epoch = begin_epoch
        return data


def _rows_of_table(args: Namespace, split: Split) -> np.ndarray:
    """Return the caption row of each pair of open_clip's training table: int64 ``[n]``.

    Raises:
        DataError: If the table cannot be read, or a pair is not in the split.
    """
    path = Path(args.train_data)
    columns = [args.csv_img_key, args.csv_caption_key]
    try:
        # As open_clip reads it.
        table = pandas.read_csv(args.train_data, sep=args.csv_separator)
        pairs = table[columns].set_axis(["image", "caption"], axis="columns")
    except KeyError:
        raise DataError(
            f"{path} does not have the columns {' and '.join(columns)}, separated by "
            f"{args.csv_separator!r}; name them with --csv-img-key and --csv-caption-key, and "
            "the separator with --csv-separator",
            path=path,
            name="csv_img_key",
        ) from None
    except ValueError as error:  # pandas cannot parse it
        raise DataError(f"{path} is no table of pairs ({error})", path=path) from None
    try:
        return split.rows_of(pairs)
    except DataError as error:
        # The pairs are rows in memory for the split, but of a file for the user.
        message = str(error).removeprefix("rows ")
        raise DataError(
            f"{path} {message}", path=path, location=error.location, name=error.name
        ) from None

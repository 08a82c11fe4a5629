"""What a run learns from and is validated on: pairs, their order, the validation split's readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cusa.data.errors import SettingError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.assemble import student_sources, training_pairs, validation_sources
from cusa.train.config import Config
from cusa.train.loader import EpochOrder, Pairs, Sources, pairs_per_step
from cusa.train.processes import Processes
from cusa.train.saving.provenance import Provenance
from cusa.train.student import Processors


@dataclass
class TrainingData:
    """Pairs and splits of a run.

    Attributes:
        pairs: The trainable pairs.
        pairs_per_step: Pairs per optimizer step of one process: as the settings have it, or all.
        pairs_in_loss: Pairs whose similarities one loss is made of.
        order: Their order, epoch by epoch.
        image_ids: Ids of the training split's images by row.
        val_sources: Readers of the validation split; ``None`` without one.
    """

    pairs: Pairs
    pairs_per_step: int
    pairs_in_loss: int
    order: EpochOrder
    image_ids: Sequence[str]
    val_sources: Sources | None


def open_training_data(
    store: EmbeddingStore,
    config: Config,
    provenance: Provenance,
    processors: Processors | None,
    processes: Processes,
) -> TrainingData:
    """Open the splits, and see that there is something to learn from.

    Args:
        store: The store.
        config: The run's settings, resolved.
        provenance: What it uses of the store.
        processors: Hugging Face student: its processors.
        processes: Those that train.

    Raises:
        CusaError: If there is not, or rows or the image folder are not there.
    """
    names = tuple(encoder.name for encoder in provenance.encoders.values())
    sources = student_sources(store, config.data.train_split, config, names, processors)
    val_sources = validation_sources(store, config, names, processors)
    pairs = training_pairs(store, sources, config, provenance)
    rank, size, seed = processes.rank, processes.size, config.train.seed
    per_step = pairs_per_step(len(pairs), config.train.pairs_per_step, size)
    order = EpochOrder(len(pairs), per_step, seed, rank, size)
    in_loss = per_step * (size if config.train.gather else 1)
    if in_loss < 2:
        remedy = "pass --batch-size with 2 or more"
        if config.train.pairs_per_step > 1:  # it is the pairs that are too few
            remedy = "train on more pairs" + (", or with fewer processes" if size > 1 else "")
        batch = f"a batch of one pair ({len(pairs):,} can be trained on)"
        message = f"{batch} has nothing to tell it from; {remedy}"
        raise SettingError(message, name="train.batch_size")
    return TrainingData(pairs, per_step, in_loss, order, sources.split.image_ids, val_sources)


def data_notes(data: TrainingData, given: Config, store: EmbeddingStore) -> list[str]:
    """Say what differs of a run's data from what is usual, or from the settings as given.

    Args:
        data: Its data.
        given: Its settings as given.
        store: The store.
    """
    notes = []
    if data.val_sources is None:
        name, reason = given.data.val_split, "data.val_split is null"
        if name is not None:
            reason = f"{store.path} has no split {name!r}"
        notes.append(f"no validation ({reason}): best/ holds the student of the last epoch")
    if data.pairs_per_step < given.train.pairs_per_step:
        in_a_step = "all of them"
        if data.pairs_per_step < len(data.pairs):
            in_a_step = f"{data.pairs_per_step:,} in each process"
        pairs = f"{len(data.pairs):,} pairs can be trained on, fewer than a step asks for"
        notes.append(f"{pairs}: each takes {in_a_step} (--batch-size, --accumulate)")
    return notes

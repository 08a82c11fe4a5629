"""The data of a run: trainable pairs, their order, and the validation split's inputs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from cusa.data.errors import SettingError
from cusa.data.objects.folder import location_text
from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.order import SetOrder
from cusa.data.tars.tar_set import TarSet
from cusa.data.worker_pool import WorkerPool
from cusa.train.config import Config
from cusa.train.loader import Batch, EpochOrder, Pairs, pairs_per_step
from cusa.train.processes import Processes
from cusa.train.saving.provenance import Provenance
from cusa.train.sources import Sources, student_sources, validation_sources
from cusa.train.stores import Store
from cusa.train.tars.opened import open_tar_pairs
from cusa.train.tars.pairs import ImageNames, TarSetPairs
from cusa.train.tars.supply import TarSupply
from cusa.train.towers.processors import Processors


@dataclass
class TrainingData:
    """The data that a run is trained and validated on.

    Attributes:
        pairs: The trainable pairs.
        pairs_per_step: Pairs per optimizer step of one process: as many as the settings ask for,
            or all if there are fewer.
        pairs_in_loss: Pairs that one loss compares with each other.
        order: The order of the pairs, epoch by epoch.
        image_ids: Ids of the training split's images, by row.
        supply: Brings the tars that batches need; ``None`` if they are read from a store of a
            single file.
        val_sources: Readers of the validation split; ``None`` without one.
    """

    pairs: Pairs | TarSetPairs
    pairs_per_step: int
    pairs_in_loss: int
    order: EpochOrder | SetOrder
    image_ids: Sequence[str]
    supply: TarSupply | None
    val_sources: Sources | None

    def sample(self, pairs: list[int]) -> Batch:
        """Read a batch of pairs at once, in this process."""
        if self.supply is not None:
            return self.supply.sample(pairs)
        return self.pairs[pairs]

    def batches(
        self,
        pool: WorkerPool[Batch],
        epoch: int,
        first: int,
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch; close the generator to stop early.

        Args:
            pool: Reads them.
            epoch: The epoch, from 0.
            first: The first batch, as those before it are done.
        """
        self.order.epoch = epoch
        self.order.first = first
        if self.supply is not None:
            return self.supply.read(pool, self.order)
        return pool.read(self.order)

    def close(self) -> None:
        """Drop what was copied to read batches from; none are read any more."""
        if self.supply is not None:
            self.supply.close()

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch."""
        return len(self.order)


def open_training_data(
    store: Store,
    val_store: Store,
    config: Config,
    provenance: Provenance,
    processors: Processors,
    processes: Processes,
) -> TrainingData:
    """Open the splits, and check that there are pairs to train on.

    Args:
        store: The store.
        val_store: The store to validate on; the same one, if the settings name no other.
        config: The run's settings, resolved.
        provenance: What the run uses of the store.
        processors: What makes the inputs of towers that are not stored.
        processes: The processes that train.

    Raises:
        CusaError: If there are too few pairs, or rows or the image folder are missing.
    """
    pairs: Pairs | TarSetPairs
    image_ids: Sequence[str]
    supply = val_sources = None
    if isinstance(store, TarSet):
        pairs, supply = open_tar_pairs(store, config, provenance, processors)
        image_ids = ImageNames(store)
    else:
        pairs, image_ids = _open_pairs(store, config, provenance, processors)
    if isinstance(val_store, EmbeddingStore):
        val_sources = validation_sources(val_store, config, provenance.encoder_names, processors)

    train = config.train
    wanted = train.pairs_per_step
    batch_size = pairs_per_step(len(pairs), wanted, processes.size)
    order = _order(pairs, batch_size, config, processes)
    pairs_in_loss = batch_size
    if train.gather:
        pairs_in_loss *= processes.size
    if pairs_in_loss < 2:
        raise _single_pair_error(len(pairs), wanted, processes.size)
    return TrainingData(pairs, batch_size, pairs_in_loss, order, image_ids, supply, val_sources)


def _open_pairs(
    store: EmbeddingStore,
    config: Config,
    provenance: Provenance,
    processors: Processors,
) -> tuple[Pairs, Sequence[str]]:
    """Open the trainable pairs of a store, and the ids of their images."""
    split = config.data.train_split
    sources = student_sources(store, split, config, provenance.encoder_names, processors)
    teachers = provenance.teachers.map(lambda stored: store.embeddings(stored.name, split))
    pairs = Pairs(sources.split, sources.inputs, teachers)
    return pairs, sources.split.image_ids


def _order(
    pairs: Pairs | TarSetPairs,
    batch_size: int,
    config: Config,
    processes: Processes,
) -> EpochOrder | SetOrder:
    """Return the order of an epoch's pairs: of all at random, or in windows of a set's tars."""
    seed = config.train.seed
    if isinstance(pairs, Pairs):
        return EpochOrder(len(pairs), batch_size, seed, processes.rank, processes.size)
    return SetOrder(
        pairs.n_trainable,
        batch_size,
        seed,
        config.data.window,
        config.data.streams,
        config.data.mix_streams,
        processes.rank,
        processes.size,
    )


def _single_pair_error(n_pairs: int, pairs_per_step: int, n_processes: int) -> SettingError:
    # A softmax over a single candidate is 1: its loss is zero.
    remedy = "pass --batch-size with 2 or more"
    if pairs_per_step > 1:  # the batch size is not the cause
        remedy = "train on more pairs"
        if n_processes > 1:
            remedy += ", or with fewer processes"
    return SettingError(
        f"a batch of one pair has nothing to compare it with ({n_pairs:,} can be trained on); "
        f"{remedy}",
        name="train.batch_size",
    )


def data_notes(
    data: TrainingData,
    given: Config,
    store: Store,
) -> list[str]:
    """List what the user should know about a run's data: no validation, or fewer pairs than a step.

    Args:
        data: The run's data.
        given: The run's settings as given.
        store: The store.
    """
    notes = []
    if data.val_sources is None:
        reason = "data.val_split is null"
        if given.data.val_split is not None:
            reason = f"{location_text(store.path)} has no split {given.data.val_split!r}"
        notes.append(f"no validation ({reason}): best/ holds the newest student")
    if data.pairs_per_step < given.train.pairs_per_step:
        in_a_step = "all of them"
        if data.pairs_per_step < len(data.pairs):
            in_a_step = f"{data.pairs_per_step:,} in each process"
        problem = f"{len(data.pairs):,} pairs can be trained on, fewer than a step asks for"
        notes.append(f"{problem}: each takes {in_a_step} (--batch-size, --accumulate)")
    return notes

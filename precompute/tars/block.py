"""Some tars at a time, as a data set whose splits are the tars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cusa.data.records import Dataset
from cusa.data.store.schema import TeacherSettings, file_name
from cusa.data.store.shards import ShardHeader
from cusa.data.tars.pairs import TarPairs
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.tars.images import TarImages
from cusa.precompute.tars.parquet_images import images_of


@dataclass(frozen=True)
class TarTask(ShardTask):
    """A teacher's rows for a tar; ``index`` is the manifest, and ``split`` the tar's name."""

    @property
    def name(self) -> str:
        """The file's path relative to the folder of the set."""
        return f"{file_name(self.teacher)}/{self.split}.h5"

    @property
    def file(self) -> str:
        """The same, as the manifest is in that folder."""
        return self.name


@dataclass(frozen=True)
class TarBlock:
    """The pairs of some tars, which go through the teachers together.

    Attributes:
        manifest_path: Path of the set's manifest.
        pairs: The pairs of each tar.
    """

    manifest_path: Path
    pairs: Sequence[TarPairs]

    @cached_property
    def dataset(self) -> Dataset:
        """The pairs as a data set."""
        splits = {tar_pairs.name: tar_pairs.records for tar_pairs in self.pairs}
        return Dataset(self.manifest_path.parent.name, self.pairs[0].path.parent, splits)

    @cached_property
    def images(self) -> TarImages:
        """The images of the data set."""
        return images_of(self.pairs)

    def tasks(
        self,
        teacher_name: str,
        modality: str,
    ) -> list[ShardTask]:
        """Return the rows that a teacher makes."""
        tasks: list[ShardTask] = []
        for tar_pairs in self.pairs:
            n_rows = len(tar_pairs.records)
            if modality == "text":
                n_rows = tar_pairs.records.n_captions
            tasks.append(TarTask(self.manifest_path, teacher_name, tar_pairs.name, 0, n_rows))
        return tasks

    def header_maker(
        self,
        settings: TeacherSettings,
    ) -> Callable[[ShardTask], ShardHeader]:
        """Return the function that returns the header of a teacher's rows for a tar."""

        def header_of(task: ShardTask) -> ShardHeader:
            tar_fingerprint = self.dataset.splits[task.split].fingerprint
            return ShardHeader(task.teacher, task.split, tar_fingerprint, 0, task.stop, settings)

        return header_of

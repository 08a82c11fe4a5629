"""What cusa-eval measures, and on what: models by name, the data that they are measured on, where results are kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.datasets import load_dataset
from cusa.data.errors import CusaError
from cusa.data.records import RecordSplit
from cusa.data.store import EmbeddingStore
from cusa.eval.encoder import StudentEncoder
from cusa.eval.failures import Teachers
from cusa.eval.models import load_encoder
from cusa.eval.sources import Advance, EncoderSource, FileSource, Source
from cusa.eval.suites import RetrievalData, embed_split
from cusa.train.encode import SplitEmbeddings, encode_split
from cusa.train.provenance import Provenance
from cusa.train.run_dir import begun
from cusa.train.saved import BEST_FOLDER, Origin
from cusa.train.setup import student_sources

RESULTS = Path("runs") / "eval"  # of models that are no run
EMPTY = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Machine:
    """How embeddings are computed.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        checkpoint: Of runs: ``"best"`` or ``"last"``.
        batch_size: Items at a time.
        workers: Readers of inputs; ``None``: none for stored inputs, else one per core.
        readers: Readers of inputs that are not stored.
        advance: Told how far it is.
    """

    device: str
    checkpoint: str
    batch_size: int
    workers: int | None
    readers: int
    advance: Advance


@dataclass(frozen=True)
class DataRequest:
    """On what retrieval is measured.

    Attributes:
        split: The split.
        dataset: A data set's name or annotation files; empty: none.
        data_root: Where named data sets lie.
        embeddings: A store, if not the run's own.
        image_root: Folder of the images, if not the data's own.
    """

    split: str
    dataset: tuple[str, ...]
    data_root: Path
    embeddings: Path | None
    image_root: Path | None


class Subject:
    """One model, loaded when it is needed.

    Args:
        spec: What names it, as :func:`cusa.eval.models.load_encoder` takes it.
        machine: How it computes.
        files: Its embeddings, where files hold them; ``spec`` is then the name of the results' folder.
    """

    def __init__(self, spec: str, machine: Machine, files: Callable[[], FileSource] | None = None) -> None:
        self._spec, self._machine, self._files = spec, machine, files

    @cached_property
    def source(self) -> Source:
        """Its embeddings.

        Raises:
            CusaError: If it cannot be loaded.
        """
        if self._files is not None:
            return self._files()
        encoder = load_encoder(self._spec, self._machine.device, self._machine.checkpoint)
        machine = self._machine
        images = (
            machine.batch_size if machine.device != "cpu" else min(machine.batch_size, 32)
        )  # they stay in the cache
        return EncoderSource(encoder, machine.batch_size, images, machine.workers or machine.readers, machine.advance)

    @property
    def student(self) -> StudentEncoder | None:
        """The trained student, if it is one."""
        encoder = getattr(self.source, "encoder", None)
        return encoder if isinstance(encoder, StudentEncoder) else None

    @property
    def run_dir(self) -> Path | None:
        """Its run's directory, if it is a run."""
        folder = Path(self._spec)
        folder = folder.parent if folder.name == BEST_FOLDER and begun(folder.parent) else folder
        return folder if self._files is None and begun(folder) else None

    @property
    def results(self) -> Path:
        """Folder of its results: in the run's directory, or below ``runs/eval``."""
        return (
            self.run_dir / "eval" if self.run_dir else RESULTS / re.sub(r"[^\w.+-]+", "-", self.source.name).lstrip(".")
        )

    def about(self, kind: str, version: tuple[int, int]) -> dict[str, Any]:
        """What every file of results begins with."""
        return {
            "format": kind,
            "format_version": list(version),
            "name": self.source.name,
            "model": dict(self.source.description),
        }

    def origin(self) -> Origin | None:
        """Where its weights come from, if a run trained it."""
        return self.student.origin if self.student else None


def retrieval_data(request: DataRequest, subjects: Sequence[Subject]) -> tuple[RetrievalData, EmbeddingStore | None]:
    """The split that all models are measured on, and the store that it is in.

    That of ``--dataset`` or ``--embeddings``; else that of the first run's own store.

    Raises:
        CusaError: If there is none, or it lacks the split.
    """
    if request.dataset:
        dataset = load_dataset(request.dataset, request.image_root, request.data_root)
        nothing = EMPTY.copy(), EMPTY.copy()
        return RetrievalData(dataset.name, RecordSplit.of(dataset, request.split), dataset.image_root, nothing), None
    run = next((s for s in subjects if s.run_dir and s.origin()), None)
    path, image_root = request.embeddings, request.image_root
    if path is None:
        if run is None:
            raise CusaError(
                "no data to measure on: these models are no runs of cusa-train; pass --dataset coco, flickr30k or an "
                "annotation file, or --embeddings STORE"
            )
        config = run.student.origin.config.data  # type: ignore[union-attr] # a run is a student
        path = Path(config.embeddings)
        image_root = image_root or (Path(config.image_root) if config.image_root else None)
    store = EmbeddingStore(path)
    split = store.split(request.split)
    return RetrievalData(store.dataset, split, image_root or store.image_root, store.skipped(request.split)), store


def embeddings_of(
    subject: Subject, data: RetrievalData, store: EmbeddingStore | None, own_store: bool, machine: Machine
) -> SplitEmbeddings:
    """A model's embeddings of a split: a student's from its store, all others' from files.

    Args:
        subject: The model.
        data: The split.
        store: The store that it is in, if it is in one.
        own_store: Whether the store must be the one that the run was trained on.
        machine: How.

    Raises:
        CusaError: If the store is another one, or an input cannot be read.
    """
    student = subject.student
    if store is None or student is None:
        return embed_split(subject.source, data)
    origin = student.origin
    check_store(store, origin.provenance, subject.source.name, own_store)
    names = tuple(t.name for t in origin.provenance.encoders.values())
    config = replace(origin.config, data=replace(origin.config.data, image_root=str(data.image_root)))
    sources = student_sources(store, data.split.name, config, names, student.processors)
    workers = machine.workers if machine.workers is not None else 0 if names else machine.readers
    return encode_split(student.student, sources, machine.device, machine.batch_size, workers)


def teachers_of(subject: Subject, store: EmbeddingStore | None, split: str) -> Teachers:
    """The teachers' rows of a split: those that the run was trained with, or the only ones of the store."""
    found = {}
    origin = subject.origin()
    for modality in ("image", "text"):
        used = origin.provenance.teachers.get(modality) if origin else None
        known = [n for n, s in store.teachers.items() if s.modality == modality] if store else []
        name = used.name if used and used.name in known else known[0] if len(known) == 1 else None
        found[modality] = store.embeddings(name, split) if store and name else None
    return Teachers(found["image"], found["text"])


def check_store(store: EmbeddingStore, provenance: Provenance, run: str, own: bool) -> None:
    """Refuse a store that is not the one that a run was trained on.

    Args:
        store: The store.
        provenance: What the run was trained on.
        run: Its name.
        own: Whether it should be the run's own; another, named on purpose, may be of other data, but its encoders must
            be the same.

    Raises:
        CusaError: If it is another; names the fields.
    """
    fields = []
    if own:
        if store.dataset != provenance.dataset:
            fields.append(f"dataset ({store.dataset!r} / {provenance.dataset!r})")
        for name, fingerprint in provenance.splits.items():
            if name in store.splits and store.splits[name].fingerprint != fingerprint:
                fields.append(f"fingerprint of split {name!r}")
    for modality, encoder in provenance.encoders.items():
        store.pick_teacher(modality, encoder.name, "--embeddings of a store")
        fields += [f"{encoder.name}.{f}" for f in encoder.settings.differing(store.teachers[encoder.name])]
    if fields:
        raise CusaError(
            f"{store.path} is not the store that {run} was trained on: {'; '.join(fields)}; train again, or pass "
            "--embeddings"
        )


def latest_run(folder: Path) -> Path:
    """The run with the newest best student.

    Raises:
        CusaError: If there is none.
    """
    found = sorted(folder.glob("**/best/student.safetensors"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise CusaError(f"no trained run under {folder}/; train one with cusa-train, or pass --run")
    return found[-1].parent.parent

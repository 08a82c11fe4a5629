"""What cusa-eval measures: models by name, how they compute, where their results are kept."""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import CusaError, RunError
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.models.any_model import load_encoder
from cusa.eval.models.embedding_providers import Advance, EncoderSource, FileSource, Source
from cusa.eval.models.student import StudentEncoder, folder_name
from cusa.eval.report.failures import Teachers
from cusa.eval.splits import FoundSplit
from cusa.eval.suites import embed_split
from cusa.train.assemble import student_sources
from cusa.train.encode_split import encode_split
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_dir import begun
from cusa.train.saving.student_folder import (
    BEST_FOLDER,
    HEADS_FILE,
    WEIGHTS_FILE,
    Origin,
    student_folder,
)

RESULTS = Path("runs") / "eval"  # of models that are no run


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


class Subject:
    """One model, loaded when it is needed and released when it was measured.

    Args:
        spec: What names it, as :func:`cusa.eval.models.any_model.load_encoder` takes it; empty: files hold
            its embeddings.
        machine: How it computes.
        files: Reads its embeddings, where files hold them.
        name: Its name, where files hold its embeddings.

    Attributes:
        name: For tables and for the folder of its results; known before it is loaded.
        run_dir: Its run's directory, if it is a run.
        results: Folder of its results: in the run's directory, or below ``runs/eval``.
    """

    def __init__(
        self,
        spec: str,
        machine: Machine,
        files: Callable[[], FileSource] | None = None,
        name: str = "",
    ) -> None:
        self._spec, self._machine, self._files = spec, machine, files
        self.name = name if files is not None else model_name(spec)
        self.run_dir = None if files is not None else _run_dir(Path(spec))
        folder = re.sub(r"[^\w.+-]+", "-", self.name).lstrip(".")
        self.results = self.run_dir / "eval" if self.run_dir else RESULTS / folder

    @cached_property
    def source(self) -> Source:
        """Its embeddings.

        Raises:
            CusaError: If it cannot be loaded.
        """
        if self._files is not None:
            return self._files()
        machine = self._machine
        encoder = load_encoder(self._spec, machine.device, machine.checkpoint)
        # On a CPU, small batches of images stay in the cache.
        images = machine.batch_size if machine.device != "cpu" else min(machine.batch_size, 32)
        return EncoderSource(
            encoder, machine.batch_size, images, machine.workers or machine.readers, machine.advance
        )

    def release(self) -> None:
        """Let the model go, so that the next one has its memory; using it again loads it again."""
        self.__dict__.pop("source", None)
        gc.collect()  # models hold themselves in circles
        if self._machine.device != "cpu":
            torch.cuda.empty_cache()

    @property
    def student(self) -> StudentEncoder | None:
        """The trained student, if it is one."""
        encoder = getattr(self.source, "encoder", None)
        return encoder if isinstance(encoder, StudentEncoder) else None

    def about(self, kind: str, version: tuple[int, int]) -> dict[str, Any]:
        """What every file of results begins with."""
        return {
            "format": kind,
            "format_version": list(version),
            "name": self.name,
            "model": dict(self.source.description),
        }

    def origin(self) -> Origin | None:
        """Where its weights come from, if a run trained it."""
        return self.student.origin if self.student else None


def model_name(spec: str) -> str:
    """What a model will be called once it is loaded.

    Args:
        spec: As :func:`cusa.eval.models.any_model.load_encoder` takes it.
    """
    folder = Path(spec)
    if not folder.is_dir():
        return spec.partition("=")[0]
    is_student = any((folder / file).is_file() for file in (WEIGHTS_FILE, HEADS_FILE))
    return folder_name(folder.parent if folder.name == BEST_FOLDER and is_student else folder)


def _run_dir(folder: Path) -> Path | None:
    """The run that a folder is of, itself or its ``best/``."""
    folder = folder.parent if folder.name == BEST_FOLDER and begun(folder.parent) else folder
    return folder if begun(folder) else None


def embeddings_of(subject: Subject, split: FoundSplit, machine: Machine) -> SplitEmbeddings:
    """A model's embeddings of a split: a student's from its store, all others' from files.

    Args:
        subject: The model.
        split: The split.
        machine: How.

    Raises:
        CusaError: If the store is another than the one that a run was trained on, or an input
            cannot be read.
    """
    student, data, store = subject.student, split.data, split.store
    if store is None or student is None:
        return embed_split(subject.source, data)
    origin = student.origin
    check_store(store, origin.provenance, subject.name, split.is_own_store)
    names = tuple(t.name for t in origin.provenance.encoders.values())
    config = replace(
        origin.config, data=replace(origin.config.data, image_root=str(data.image_root))
    )
    sources = student_sources(store, data.split.name, config, names, student.processors)
    workers = machine.workers if machine.workers is not None else 0 if names else machine.readers
    return encode_split(
        student.student,
        sources,
        machine.device,
        machine.batch_size,
        workers,
        advance=machine.advance,
    )


def teachers_of(subject: Subject, store: EmbeddingStore | None, split: str) -> Teachers:
    """The teachers' rows of a split: those that the run was trained with, or the only ones of the store."""
    rows_of = {}
    origin = subject.origin()
    for modality in ("image", "text"):
        used = origin.provenance.teachers.get(modality) if origin else None
        known = [n for n, s in store.teachers.items() if s.modality == modality] if store else []
        name = used.name if used and used.name in known else known[0] if len(known) == 1 else None
        rows_of[modality] = store.embeddings(name, split) if store and name else None
    return Teachers(rows_of["image"], rows_of["text"])


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
        fields += [
            f"{encoder.name}.{f}"
            for f in encoder.settings.differences(store.teachers[encoder.name])
        ]
    if fields:
        raise CusaError(
            f"{store.path} is not the store that {run} was trained on: {'; '.join(fields)}; train again, or pass "
            "--embeddings"
        )


def check_local(spec: str, is_run: bool) -> None:
    """Refuse a mistyped run before a model hub is asked for it.

    Args:
        spec: What names a model.
        is_run: Whether it was named as a run; of other models, those that stand beside runs must be
            folders, too.

    Raises:
        RunError: If there is no such folder; names those that are like it.
        CusaError: If a folder that was named as a run holds no student.
    """
    folder = Path(spec)
    if folder.is_dir():
        if is_run and not begun(folder):
            student_folder(folder)
        return
    beside = _runs_in(folder.parent) if is_run or "/" in spec else []
    if not (is_run or beside):
        return
    near = difflib.get_close_matches(folder.name, beside, n=3) or beside[:5]
    advice = "pass the directory of a run, or an exported folder"
    if near:
        advice = f"in {folder.parent} are: {', '.join(near)}"
    raise RunError(f"{spec} does not exist; {advice}", path=folder, name=spec)


def _runs_in(folder: Path) -> list[str]:
    """Names of the runs in a folder."""
    try:
        return sorted(path.name for path in folder.iterdir() if begun(path))
    except OSError:
        return []


def latest_run(folder: Path) -> Path:
    """The run with the newest best student.

    Raises:
        CusaError: If there is none.
    """
    students = sorted(folder.glob("**/best/student.safetensors"), key=lambda p: p.stat().st_mtime)
    if not students:
        raise CusaError(f"no trained run under {folder}/; train one with cusa-train, or pass --run")
    return students[-1].parent.parent

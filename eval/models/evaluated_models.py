"""Models that cusa-eval measures: loaded by name when needed, each with a folder of results."""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import RunError
from cusa.eval.models.any_model import load_encoder
from cusa.eval.models.embedding_providers import (
    Advance,
    EmbeddingFile,
    EmbeddingProvider,
    EncoderProvider,
    FileProvider,
)
from cusa.eval.models.scores import ScoreFile, ScoresProvider
from cusa.eval.models.student import StudentEncoder, folder_name
from cusa.train.saving.run_dir import begun
from cusa.train.saving.sessions import Session, SessionHistory, read_sessions
from cusa.train.saving.student_folder import (
    BEST_FOLDER,
    HEADS_FILE,
    WEIGHTS_FILE,
    Origin,
    student_folder,
)

RESULTS = Path("runs") / "eval"  # folder of the results of models that are not runs
CPU_IMAGE_BATCH = 32  # small enough for a CPU's cache


@dataclass(frozen=True)
class ComputeOptions:
    """How embeddings are computed.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        checkpoint: The student of a run to load: ``"best"`` or ``"last"``.
        batch_size: Number of items per batch.
        workers: Number of workers that read inputs; ``None`` for no workers if inputs are read from
            a store, else ``readers`` of them.
        readers: Default number of workers for inputs that are not in a store.
    """

    device: str
    checkpoint: str
    batch_size: int
    workers: int | None
    readers: int


class EvaluatedModel:
    """A model under evaluation, loaded when it is needed and released after it is measured.

    Args:
        spec: The model, as :func:`cusa.eval.models.any_model.load_encoder` takes it; empty if files
            hold its embeddings.
        compute: How to compute its embeddings.
        advance: Called with the progress.
        files: Files of its image and text embeddings, if files hold them.
        name: Its name, if files hold its embeddings or scores.
        score_file: File of its scores, if it gives no embeddings.

    Attributes:
        name: Its name, known before it is loaded.
        title: Its name in a report, unlike those of the other models.
        compute: How to compute its embeddings.
        advance: Called with the progress.
        run_dir: Directory of its run; ``None`` if it is not a run.
        results: Folder of its results: ``eval`` in the run's directory, or a folder in
            ``runs/eval``.
        split_embeddings: Its embeddings by split, kept for all suites.
        sessions: The sessions of its training, if it is a run that recorded them.
        note: Why its sessions cannot be read; empty if they can.
    """

    def __init__(
        self,
        spec: str,
        compute: ComputeOptions,
        advance: Advance,
        files: tuple[EmbeddingFile | None, EmbeddingFile | None] | None = None,
        name: str = "",
        score_file: ScoreFile | None = None,
    ) -> None:
        self._spec, self._files = spec, files
        self._score_file = score_file
        self.compute = compute
        self.advance = advance
        self.name = self.title = name or _name_of(spec)
        self.run_dir = _run_of(spec) if spec else None
        folder_of_name = re.sub(r"[^\w.+-]+", "-", self.name).lstrip(".")
        self.results = self.run_dir / "eval" if self.run_dir else RESULTS / folder_of_name
        self.split_embeddings: dict[Hashable, SplitEmbeddings] = {}
        self.sessions, self.note = SessionHistory([], "")
        if self.run_dir is not None:
            self.sessions, self.note = read_sessions(self.run_dir)

    @cached_property
    def provider(self) -> EmbeddingProvider:
        """Provider of its embeddings; the first access loads the model.

        Raises:
            CusaError: If the model cannot be loaded.
        """
        if self._score_file is not None:
            return ScoresProvider(self._score_file, self.name)
        if self._files is not None:
            return FileProvider(*self._files, name=self.name)
        compute = self.compute
        encoder = load_encoder(self._spec, compute.device, compute.checkpoint)
        image_batch_size = compute.batch_size
        if compute.device == "cpu":
            image_batch_size = min(image_batch_size, CPU_IMAGE_BATCH)
        workers = compute.workers or compute.readers
        return EncoderProvider(encoder, compute.batch_size, image_batch_size, workers, self.advance)

    def release(self) -> None:
        """Free the model's memory for the next one; another use loads it again."""
        self.__dict__.pop("provider", None)
        self.split_embeddings.clear()
        gc.collect()  # models hold reference cycles
        if self.compute.device != "cpu":
            torch.cuda.empty_cache()

    @property
    def scores(self) -> ScoresProvider | None:
        """Its scores; ``None`` if the model gives embeddings."""
        return self.provider if isinstance(self.provider, ScoresProvider) else None

    @property
    def student(self) -> StudentEncoder | None:
        """The trained student; ``None`` if the model is no student."""
        encoder = getattr(self.provider, "encoder", None)
        return encoder if isinstance(encoder, StudentEncoder) else None

    @property
    def origin(self) -> Origin | None:
        """The run that trained the student; ``None`` if the model is no student."""
        return self.student.origin if self.student else None


def training_facts(sessions: Sequence[Session]) -> dict[str, Any]:
    """Summarise the sessions of a run, at least one, as results files hold them."""
    machines = dict.fromkeys(session.machine for session in sessions)
    last = sessions[-1]
    return {
        "began": sessions[0].began,
        "seconds": sum(session.seconds for session in sessions),
        "sessions": len(sessions),
        "machines": list(machines),
        "processes": last.processes,
        "versions": dict(last.versions),
    }


def _name_of(spec: str) -> str:
    """Return the name that a model will have once it is loaded."""
    folder = Path(spec)
    if not folder.is_dir():
        return spec.partition("=")[0]
    holds_student = (folder / WEIGHTS_FILE).is_file() or (folder / HEADS_FILE).is_file()
    if folder.name == BEST_FOLDER and holds_student:
        folder = folder.parent
    return folder_name(folder)


def _run_of(spec: str) -> Path | None:
    """Return the run directory that is given by itself or by its ``best/``, or ``None``."""
    folder = Path(spec)
    if folder.name == BEST_FOLDER and begun(folder.parent):
        return folder.parent
    return folder if begun(folder) else None


def check_local(spec: str, is_run: bool) -> None:
    """Refuse a mistyped run before it is looked up on a model hub.

    Args:
        spec: The model, as the user named it.
        is_run: Whether it must be a run or a student's folder. Any other model must be a folder
            only if there are runs where it would lie.

    Raises:
        RunError: If there is no such folder; the message names similar ones.
        CusaError: If a folder that must be a run holds no student.
    """
    folder = Path(spec)
    if folder.is_dir():
        if is_run and not begun(folder):
            student_folder(folder)
        return
    # A hub name has a slash, too, but no runs lie beside it.
    sibling_runs: list[str] = []
    if is_run or "/" in spec:
        sibling_runs = _runs_in(folder.parent)
    if not is_run and not sibling_runs:
        return
    similar_runs = difflib.get_close_matches(folder.name, sibling_runs, n=3)
    suggestions = similar_runs or sibling_runs[:5]
    advice = "pass the directory of a run, or an exported folder"
    if suggestions:
        advice = f"{folder.parent} holds {', '.join(suggestions)}"
    raise RunError(f"{spec} does not exist; {advice}", path=folder, name=spec)


def _runs_in(folder: Path) -> list[str]:
    """Return the names of the runs in a folder."""
    try:
        return sorted(path.name for path in folder.iterdir() if begun(path))
    except OSError:
        return []


def latest_run(folder: Path) -> Path:
    """Return the run below a folder whose best student is the newest.

    Raises:
        RunError: If there is no run with a best student.
    """
    # A run has no best student before its first validation.
    weights_files = folder.glob(f"**/{BEST_FOLDER}/{WEIGHTS_FILE}")
    latest = max(weights_files, key=lambda weights: weights.stat().st_mtime, default=None)
    if latest is None:
        raise RunError(
            f"no trained run under {folder}/; train one with cusa-train, or pass --run",
            path=folder,
        )
    return latest.parent.parent

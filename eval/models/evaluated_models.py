"""Models that cusa-eval measures: by name, loaded when needed, with a folder of results each."""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
from cusa.eval.models.student import StudentEncoder, folder_name
from cusa.train.saving.run_dir import begun
from cusa.train.saving.student_folder import (
    BEST_FOLDER,
    HEADS_FILE,
    WEIGHTS_FILE,
    Origin,
    student_folder,
)

RESULTS = Path("runs") / "eval"  # of models that are no run
CPU_IMAGE_BATCH = 32  # on a CPU, small batches of images stay in the cache


@dataclass(frozen=True)
class ComputeOptions:
    """How embeddings are computed.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        checkpoint: Of runs: ``"best"`` or ``"last"``.
        batch_size: Items at a time.
        workers: Readers of inputs; ``None``: none for stored inputs, else one per core.
        readers: Readers of inputs that are not stored.
    """

    device: str
    checkpoint: str
    batch_size: int
    workers: int | None
    readers: int


class EvaluatedModel:
    """One model, loaded when it is needed and released when it was measured.

    Args:
        spec: Its name, as :func:`cusa.eval.models.any_model.load_encoder` takes it; empty: files
            hold its embeddings.
        compute: How its embeddings are computed.
        advance: Told how far it is.
        files: Its image and its text embeddings, where files hold them.
        name: Its name, where files hold its embeddings.

    Attributes:
        name: For the folder of its results; known before it is loaded.
        title: Its name beside other models, which may be called the same.
        compute: As given.
        advance: As given.
        run_dir: Its run's directory, if it is a run.
        results: Folder of its results: in the run's directory, or below ``runs/eval``.
        split_embeddings: Its embeddings of each split; several suites measure them.
    """

    def __init__(
        self,
        spec: str,
        compute: ComputeOptions,
        advance: Advance,
        files: tuple[EmbeddingFile | None, EmbeddingFile | None] | None = None,
        name: str = "",
    ) -> None:
        self._spec, self._files = spec, files
        self.compute = compute
        self.advance = advance
        self.name = self.title = name or _name_of(spec)
        self.run_dir = _run_of(spec) if spec else None
        folder_of_name = re.sub(r"[^\w.+-]+", "-", self.name).lstrip(".")
        self.results = self.run_dir / "eval" if self.run_dir else RESULTS / folder_of_name
        self.split_embeddings: dict[Hashable, SplitEmbeddings] = {}

    @cached_property
    def provider(self) -> EmbeddingProvider:
        """Provider of its embeddings.

        Raises:
            CusaError: If it cannot be loaded.
        """
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
        """Let the model go, so that the next one has its memory; using it again loads it again."""
        self.__dict__.pop("provider", None)
        self.split_embeddings.clear()
        gc.collect()  # models hold themselves in circles
        if self.compute.device != "cpu":
            torch.cuda.empty_cache()

    @property
    def student(self) -> StudentEncoder | None:
        """The trained student, if it is one."""
        encoder = getattr(self.provider, "encoder", None)
        return encoder if isinstance(encoder, StudentEncoder) else None

    @property
    def origin(self) -> Origin | None:
        """The run that its weights come from, if one trained it."""
        return self.student.origin if self.student else None


def _name_of(spec: str) -> str:
    """Return what a model will be called once it is loaded."""
    folder = Path(spec)
    if not folder.is_dir():
        return spec.partition("=")[0]
    holds_student = (folder / WEIGHTS_FILE).is_file() or (folder / HEADS_FILE).is_file()
    if folder.name == BEST_FOLDER and holds_student:
        folder = folder.parent
    return folder_name(folder)


def _run_of(spec: str) -> Path | None:
    """Return the run that a name stands for, its directory or its ``best/``, if it is one's."""
    folder = Path(spec)
    if folder.name == BEST_FOLDER and begun(folder.parent):
        return folder.parent
    return folder if begun(folder) else None


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
    # A model of the hub has a slash, too, but no runs beside it.
    sibling_runs: list[str] = []
    if is_run or "/" in spec:
        sibling_runs = _runs_in(folder.parent)
    if not is_run and not sibling_runs:
        return
    similar_runs = difflib.get_close_matches(folder.name, sibling_runs, n=3)
    suggestions = similar_runs or sibling_runs[:5]
    advice = "pass the directory of a run, or an exported folder"
    if suggestions:
        advice = f"in {folder.parent} are: {', '.join(suggestions)}"
    raise RunError(f"{spec} does not exist; {advice}", path=folder, name=spec)


def _runs_in(folder: Path) -> list[str]:
    """Return the names of the runs in a folder."""
    try:
        return sorted(path.name for path in folder.iterdir() if begun(path))
    except OSError:
        return []


def latest_run(folder: Path) -> Path:
    """Return the run with the newest best student.

    Raises:
        RunError: If there is none.
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

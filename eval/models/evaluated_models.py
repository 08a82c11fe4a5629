"""Models that cusa-eval measures: by name, loaded when needed, with a folder of results each."""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import torch

from cusa.data.errors import RunError
from cusa.eval.models.any_model import load_encoder
from cusa.eval.models.embedding_providers import Advance, EncoderSource, FileSource, Source
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
Value = TypeVar("Value")


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
        read_files: Reads its embeddings, where files hold them.
        name: Its name, where files hold its embeddings.

    Attributes:
        name: For the folder of its results; known before it is loaded.
        title: Its name beside other models, which may be called the same.
        compute: As given.
        advance: As given.
        run_dir: Its run's directory, if it is a run.
        results: Folder of its results: in the run's directory, or below ``runs/eval``.
    """

    def __init__(
        self,
        spec: str,
        compute: ComputeOptions,
        advance: Advance,
        read_files: Callable[[], FileSource] | None = None,
        name: str = "",
    ) -> None:
        self._spec = spec
        self._read_files = read_files
        self._computed: dict[Hashable, object] = {}
        self.compute = compute
        self.advance = advance
        self.name = name if read_files is not None else model_name(spec)
        self.title = self.name
        self.run_dir = run_of(spec) if read_files is None else None
        folder_of_name = re.sub(r"[^\w.+-]+", "-", self.name).lstrip(".")
        self.results = self.run_dir / "eval" if self.run_dir else RESULTS / folder_of_name

    @cached_property
    def source(self) -> Source:
        """Its embeddings.

        Raises:
            CusaError: If it cannot be loaded.
        """
        if self._read_files is not None:
            return self._read_files()
        compute = self.compute
        encoder = load_encoder(self._spec, compute.device, compute.checkpoint)
        image_batch_size = compute.batch_size
        if compute.device == "cpu":
            image_batch_size = min(image_batch_size, CPU_IMAGE_BATCH)
        return EncoderSource(
            encoder,
            compute.batch_size,
            image_batch_size,
            compute.workers or compute.readers,
            self.advance,
        )

    def compute_once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return what several suites need of the model: computed at first, then remembered.

        Args:
            key: What it is.
            compute: Computes it.
        """
        if key not in self._computed:
            self._computed[key] = compute()
        return cast("Value", self._computed[key])

    def release(self) -> None:
        """Let the model go, so that the next one has its memory; using it again loads it again."""
        self.__dict__.pop("source", None)
        self._computed.clear()
        gc.collect()  # models hold themselves in circles
        if self.compute.device != "cpu":
            torch.cuda.empty_cache()

    @property
    def student(self) -> StudentEncoder | None:
        """The trained student, if it is one."""
        encoder = getattr(self.source, "encoder", None)
        return encoder if isinstance(encoder, StudentEncoder) else None

    @property
    def origin(self) -> Origin | None:
        """The run that its weights come from, if one trained it."""
        return self.student.origin if self.student else None

    def missing(self, modalities: frozenset[str]) -> list[str]:
        """Return the modalities that it does not embed, in order, of those that are needed."""
        return sorted(modalities - self.source.modalities)


def model_name(spec: str) -> str:
    """Return what a model will be called once it is loaded.

    Args:
        spec: As :func:`cusa.eval.models.any_model.load_encoder` takes it.
    """
    folder = Path(spec)
    if not folder.is_dir():
        return spec.partition("=")[0]
    holds_student = (folder / WEIGHTS_FILE).is_file() or (folder / HEADS_FILE).is_file()
    if folder.name == BEST_FOLDER and holds_student:
        folder = folder.parent
    return folder_name(folder)


def run_of(spec: str) -> Path | None:
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
    may_be_run = is_run or "/" in spec
    sibling_runs = _runs_in(folder.parent) if may_be_run else []
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

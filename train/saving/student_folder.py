"""A trained student as a folder that loads anywhere.

Such are ``best/`` of a run, and what ``cusa-train export`` wrote. ``student.safetensors`` holds all
weights, with settings and provenance in its metadata; for a Hugging Face student its configuration,
tokeniser and image processor lie beside it. In a folder exported for transformers the backbone's
weights are transformers' own file, and ``heads.safetensors`` holds the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, FiniteFloat
from torch import Tensor

from cusa.data.embeddings import Head
from cusa.data.errors import RunError, SettingError, StudentError
from cusa.train.config import Config, build_config
from cusa.train.saving.plain_values import checked
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.tensors import (
    load_metadata,
    load_tensors,
    mismatch,
    not_finite,
    save_tensors,
    without_prefix,
)
from cusa.train.student import Processors, Student, adapter_student, dual_encoder_student

WEIGHTS_FILE = "student.safetensors"
HEADS_FILE = "heads.safetensors"
BEST_FOLDER = "best"


class _OriginForm(BaseModel):
    config: dict[str, Any]
    provenance: dict[str, Any]
    epoch: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    val: dict[str, FiniteFloat]
    n_pairs: Annotated[int, Field(ge=0)]
    processes: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        config: The run's settings.
        provenance: What it was trained on.
        epoch: Epochs that the steps done belong to: the last one may not be over.
        step: Steps done.
        val: Recalls of the validation split in percent, by name; empty if it has not been measured
            with these weights.
        n_pairs: Pairs that it was trained on.
        processes: Processes that trained it.
    """

    config: Config
    provenance: Provenance
    epoch: int
    step: int
    val: Mapping[str, float]
    n_pairs: int
    processes: int = 1

    @property
    def uni_head(self) -> Head:
        """Head to use within a modality: ``"uni"`` if USA trained it, else ``"cross"``."""
        return "uni" if "usa" in self.config.loss.terms else "cross"

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON has them."""
        config = dataclasses.asdict(self.config)
        config["loss"]["terms"] = list(config["loss"]["terms"])
        return {
            "config": config,
            "provenance": self.provenance.to_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "val": dict(self.val),
            "n_pairs": self.n_pairs,
            "processes": self.processes,
        }

    @staticmethod
    def from_dict(content: Any) -> Origin:
        """Read the inverse of :meth:`to_dict`.

        Raises:
            RunError: If an entry is missing, of another type, or has an illegal value; says which.
        """
        form = checked(_OriginForm, content, "origin")
        try:
            config = build_config(form.config)
        except SettingError as error:
            raise RunError(str(error), name=error.name) from None
        provenance = Provenance.from_dict(form.provenance)
        if config.student.name == "adapter" and len(provenance.encoders) < 2:
            raise RunError(
                "an adapter has two encoders, one for images and one for texts",
                name="encoders",
            )
        return Origin(
            config=config,
            provenance=provenance,
            epoch=form.epoch,
            step=form.step,
            val=form.val,
            n_pairs=form.n_pairs,
            processes=form.processes,
        )


@dataclass(frozen=True)
class SavedStudent:
    """A trained student.

    Attributes:
        student: The model, in eval mode, on the CPU.
        backbone: The transformers model within it; ``None`` for the adapter.
        processors: Image processor and tokeniser of a Hugging Face student; ``None`` for the
            adapter.
        origin: Where its weights come from.
    """

    student: Student
    backbone: Any
    processors: Processors | None
    origin: Origin


def save_student(path: Path, student: Student, origin: Origin) -> None:
    """Write all weights of a student to a file."""
    save_tensors(path, student.state_dict(), origin.to_dict())


def student_folder(path: Path) -> Path:
    """Return the folder of a student: ``best/`` of a run, or the folder itself.

    Raises:
        CusaError: If there is no student in it.
    """
    for folder in (path / BEST_FOLDER, path):
        if _weights_file(folder).is_file():
            return folder
    if (path / "config.yaml").is_file():
        raise RunError(
            f"{path} holds no best student yet; has the run finished its first epoch?",
            path=path,
        )
    kinds = "a run directory of cusa-train, its best/, or a folder of cusa-train export --to hf"
    problem = "holds no student" if path.exists() else "does not exist"
    raise StudentError(f"{path} {problem}; pass {kinds}", path=path)


def load_saved(path: Path) -> SavedStudent:
    """Load a student from a run directory (its best one), or from a folder that holds one.

    Raises:
        CusaError: If there is none, or it is damaged; says what to do.
    """
    folder = student_folder(path)
    weights = _weights_file(folder)
    tensors, meta = load_tensors(weights)
    is_export = weights.name == HEADS_FILE
    return _with_weights(folder, tensors, _origin(meta, weights), is_export)


def load_origin(path: Path) -> Origin:
    """Tell where a student's weights come from without loading them; see :func:`load_saved`.

    Raises:
        CusaError: If there is none, or it is damaged; says what to do.
    """
    weights = _weights_file(student_folder(path))
    return _origin(load_metadata(weights), weights)


def _weights_file(folder: Path) -> Path:
    """Return the file of all weights or, where there is none, that of an export's heads."""
    weights = folder / WEIGHTS_FILE
    return weights if weights.is_file() else folder / HEADS_FILE


def _origin(meta: dict[str, Any], weights: Path) -> Origin:
    try:
        return Origin.from_dict(meta)
    except RunError as error:
        message = f"{weights} is damaged ({error}); use another or train again"
        raise RunError(message, path=weights, location=error.location, name=error.name) from None


def load_checkpointed(
    folder: Path,
    tensors: Mapping[str, Tensor],
    origin: Origin,
) -> SavedStudent:
    """Load a student from the tensors of a checkpoint.

    Args:
        folder: The run's ``best/``, where a Hugging Face student's configuration lies.
        tensors: The checkpoint's.
        origin: Where they come from.

    Raises:
        CusaError: If they do not fit the student that the origin names.
    """
    weights = without_prefix("student", tensors)
    return _with_weights(folder, weights, origin, is_export=False)


def _with_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    origin: Origin,
    is_export: bool,
) -> SavedStudent:
    """Make the student that an origin names, with these weights.

    Args:
        folder: Where a Hugging Face student's configuration lies.
        tensors: The weights; of an export, those of the heads alone.
        origin: Where they come from.
        is_export: Whether transformers loads the backbone's weights from the folder.
    """
    student, processors, backbone = _empty_student(folder, origin, is_export)
    expected = student.state_dict()
    if is_export:
        expected = heads_of(expected)
    problem = mismatch(tensors, expected)
    if problem:
        unfit = f"the weights in {folder} do not fit the configuration beside them ({problem})"
        raise StudentError(f"{unfit}; was a file changed?", path=folder)
    # An adapter was made without memory for its weights.
    if backbone is None:
        student.to_empty(device="cpu")
    student.load_state_dict(tensors, strict=not is_export)
    if is_export:
        problem = not_finite(student.state_dict())
        if problem:
            unusable = f"the weights in {folder} cannot be used ({problem})"
            raise StudentError(f"{unusable}; export them again", path=folder)
    return SavedStudent(student.eval(), backbone, processors, origin)


def _empty_student(
    folder: Path,
    origin: Origin,
    is_export: bool,
) -> tuple[Student, Processors | None, Any]:
    """Make a student without its weights, its processors, and the backbone within it."""
    settings = origin.config.student
    if settings.name != "adapter":
        return dual_encoder_student(settings, str(folder), is_export)
    encoders = origin.provenance.encoders
    image_dim = encoders["image"].settings.dim
    text_dim = encoders["text"].settings.dim
    with torch.device("meta"):  # nothing is allocated for sizes that the weights do not have
        return adapter_student(settings, image_dim, text_dim), None, None


def heads_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a student's four heads."""
    return {name: tensor for name, tensor in tensors.items() if "_heads." in name}

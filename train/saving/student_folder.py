"""A trained student as a folder that loads anywhere.

It is a run's ``best/``, or what ``cusa-train export --to hf`` wrote. ``student.safetensors`` holds
all weights, with settings and provenance in its metadata; beside it are the configuration,
tokeniser and image processor of a Hugging Face student. In an exported folder, the backbone's
weights are in transformers' own file, and ``heads.safetensors`` holds the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic.dataclasses
import torch
from pydantic import Field, FiniteFloat, PlainValidator
from torch import Tensor

from cusa.data.embeddings import Head
from cusa.data.errors import RunError, StudentError
from cusa.train.build_student import BuiltStudent, build_student
from cusa.train.config import Config
from cusa.train.config_building import build_config
from cusa.train.saving.plain_values import checked, named_as_damaged
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_progress import Count, Epochs
from cusa.train.saving.tensors import (
    load_metadata,
    load_tensors,
    mismatch,
    not_finite,
    save_tensors,
)
from cusa.train.student import Student
from cusa.train.student_config import LoraConfig
from cusa.train.towers.processors import Processors
from cusa.train.towers.tower import Towers

WEIGHTS_FILE = "student.safetensors"
HEADS_FILE = "heads.safetensors"
BEST_FOLDER = "best"


def _read_config(content: Any) -> Config:
    if isinstance(content, Config):
        return content
    return build_config(content)


@pydantic.dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        config: The run's settings.
        provenance: What it was trained on.
        epoch: Epochs done; within one, a fraction.
        step: Steps done.
        val: Recalls of the validation split in percent, by name; empty if these weights were not
            validated.
        n_pairs: Pairs that it was trained on.
        processes: Processes that trained it.
    """

    config: Annotated[Config, PlainValidator(_read_config)]
    provenance: Provenance
    epoch: Epochs
    step: Count
    val: Mapping[str, FiniteFloat]
    n_pairs: Count
    processes: Annotated[int, Field(ge=1)] = 1

    @property
    def uni_head(self) -> Head:
        """Return the head to use within a modality: ``"uni"`` if trained, else ``"cross"``."""
        return "uni" if "usa" in self.config.loss.terms else "cross"

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON-compatible values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(content: Any) -> Origin:
        """Read the inverse of :meth:`to_dict`.

        Raises:
            RunError: If an entry is missing, has another type or an illegal value; ``location``
                is its path.
        """
        origin = checked(Origin, content, "origin")
        stored = set(origin.config.student.stored)
        if not stored <= origin.provenance.encoders.keys():
            raise RunError(
                f"a student with stored towers ({', '.join(sorted(stored))}) has an encoder for "
                "each of them",
                name="encoders",
            )
        return origin


@dataclasses.dataclass(frozen=True)
class SavedStudent:
    """A trained student.

    Attributes:
        student: The model, in eval mode, on the CPU.
        towers: Its towers.
        origin: Where its weights come from.
    """

    student: Student
    towers: Towers
    origin: Origin

    @property
    def processors(self) -> Processors:
        """Return what makes the inputs of towers that are not stored."""
        return self.towers.processors

    @property
    def backbone(self) -> Any:
        """Return the transformers model of a dual encoder; ``None`` for other students."""
        return self.towers.backbone


def save_student(path: Path, student: Student, origin: Origin) -> None:
    """Write all weights of a student to a file.

    Raises:
        OSError: If it cannot be written.
    """
    save_tensors(path, student.state_dict(), origin.to_dict())


def student_folder(path: Path) -> Path:
    """Return the folder that holds a student: a run's ``best/``, or ``path`` itself.

    Raises:
        RunError: If the run has no best student yet.
        StudentError: If neither holds a student.
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
    problem = "does not exist"
    if path.exists():
        problem = "holds no student"
    raise StudentError(f"{path} {problem}; pass {kinds}", path=path)


def load_saved(path: Path) -> SavedStudent:
    """Load the best student of a run directory, or the student of a folder.

    Raises:
        CusaError: If there is no student, or its files are damaged; the message says what to do.
    """
    folder = student_folder(path)
    weights_file = _weights_file(folder)
    tensors, metadata = load_tensors(weights_file)
    origin = _origin(metadata, weights_file)
    is_export = weights_file.name == HEADS_FILE
    return with_weights(folder, tensors, origin, is_export)


def load_origin(path: Path) -> Origin:
    """Read where a student's weights come from without loading them; see :func:`load_saved`.

    Raises:
        CusaError: If there is no student, or its files are damaged; the message says what to do.
    """
    weights_file = _weights_file(student_folder(path))
    metadata = load_metadata(weights_file)
    return _origin(metadata, weights_file)


def _weights_file(folder: Path) -> Path:
    """Return the file of all weights or, if there is none, that of an export's heads."""
    weights_file = folder / WEIGHTS_FILE
    if weights_file.is_file():
        return weights_file
    return folder / HEADS_FILE


def _origin(metadata: dict[str, Any], weights_file: Path) -> Origin:
    with named_as_damaged(weights_file, "use another or train again"):
        return Origin.from_dict(metadata)


def with_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    origin: Origin,
    is_export: bool = False,
) -> SavedStudent:
    """Make the student that an origin describes, with these weights.

    Args:
        folder: The folder that describes the models of its towers.
        tensors: All weights by name; for an export, only those of the heads.
        origin: Where the weights come from.
        is_export: Whether the backbone's weights are in transformers' own file in that folder.

    Raises:
        CusaError: If the weights do not fit that student.
    """
    student, towers = _empty_student(folder, origin, is_export)
    expected = student.state_dict()
    if is_export:
        expected = heads_of(expected)
    problem = mismatch(tensors, expected)
    if problem:
        raise StudentError(
            f"the weights in {folder} do not fit the configuration beside them ({problem}); was a "
            "file changed?",
            path=folder,
        )
    if origin.config.student.is_adapter:
        student.to_empty(device="cpu")
    student.load_state_dict(tensors, strict=not is_export)
    if is_export:
        problem = not_finite(student.state_dict())
        if problem:
            raise StudentError(
                f"the weights in {folder} cannot be used ({problem}); export them again",
                path=folder,
            )
    return SavedStudent(student.eval(), towers, origin)


def _empty_student(
    folder: Path,
    origin: Origin,
    is_export: bool,
) -> BuiltStudent:
    """Make the student of an origin, for weights to be loaded; an adapter without memory."""
    settings = origin.config.student
    if is_export:  # which has no adapters any more
        settings = dataclasses.replace(settings, lora=LoraConfig())
    row_dims = origin.provenance.row_dims
    if not settings.is_adapter:
        return build_student(settings, row_dims, folder, is_export)
    with torch.device("meta"):  # allocate nothing before the sizes are compared with the weights
        return build_student(settings, row_dims, folder, is_export)


def heads_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a student's four heads."""
    return {name: tensor for name, tensor in tensors.items() if "_heads." in name}

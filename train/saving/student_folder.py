"""A trained student as a folder that loads anywhere: ``best/`` of a run, or what ``cusa-train export`` wrote.

``student.safetensors`` holds all weights, with settings and provenance in its metadata; for a Hugging Face student its
configuration, tokeniser and image processor lie beside it. In a folder exported for transformers the backbone's weights
are transformers' own file, and ``heads.safetensors`` holds the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, FiniteFloat

from cusa.data.embeddings import Head
from cusa.data.errors import RunError, SettingError, StudentError
from cusa.train.config import Config, build_config
from cusa.train.saving.plain_values import checked
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.tensors import (
    load_metadata,
    load_tensors,
    not_finite,
    save_tensors,
    under,
    unlike,
)
from cusa.train.student import Processors, Student, adapter_student, dual_encoder_student

WEIGHTS_FILE = "student.safetensors"
HEADS_FILE = "heads.safetensors"
BEST_FOLDER = "best"


class _PlainOrigin(BaseModel):
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
        epoch: Epochs done, the one begun included.
        step: Steps done.
        val: Recalls of the validation split in percent, by name; empty if it has not been measured with these weights.
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
        """The head to use within a modality: ``"uni"`` if USA trained it, else ``"cross"``."""
        return "uni" if "usa" in self.config.loss.terms else "cross"

    def plain(self) -> dict[str, Any]:
        """JSON-compatible."""
        config = dataclasses.asdict(self.config)
        config["loss"]["terms"] = list(config["loss"]["terms"])
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {
            "config": config,
            "provenance": self.provenance.plain(),
            "val": dict(self.val),
        }

    @staticmethod
    def from_plain(content: Any) -> Origin:
        """Read the inverse of :meth:`plain`.

        Raises:
            RunError: If an entry is missing, of another type, or has an illegal value; says which.
        """
        plain = checked(_PlainOrigin, content, "origin")
        try:
            config = build_config(plain.config)
        except SettingError as error:
            raise RunError(str(error), name=error.name) from None
        provenance = Provenance.from_plain(plain.provenance)
        if config.student.name == "adapter" and len(provenance.encoders) < 2:
            raise RunError(
                "an adapter has two encoders, one for images and one for texts",
                name="encoders",
            )
        return Origin(**{**plain.model_dump(), "config": config, "provenance": provenance})


@dataclass(frozen=True)
class SavedStudent:
    """A trained student.

    Attributes:
        student: The model, in eval mode, on the CPU.
        backbone: The transformers model within it; ``None`` for the adapter.
        processors: Image processor and tokeniser of a Hugging Face student; ``None`` for the adapter.
        origin: Where its weights come from.
    """

    student: Student
    backbone: Any
    processors: Processors | None
    origin: Origin


def save_student(path: Path, student: Student, origin: Origin) -> None:
    """Write all weights of a student to a file."""
    save_tensors(path, student.state_dict(), origin.plain())


def student_folder(path: Path) -> Path:
    """The folder of a student: ``best/`` of a run, or the folder itself.

    Raises:
        CusaError: If there is no student in it.
    """
    for folder in (path / BEST_FOLDER, path):
        if (folder / WEIGHTS_FILE).is_file() or (folder / HEADS_FILE).is_file():
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
    return _filled(folder, tensors, _origin(meta, weights), exported=weights.name == HEADS_FILE)


def load_origin(path: Path) -> Origin:
    """Tell where a student's weights come from without loading them; see :func:`load_saved`.

    Raises:
        CusaError: If there is none, or it is damaged; says what to do.
    """
    weights = _weights_file(student_folder(path))
    return _origin(load_metadata(weights), weights)


def _weights_file(folder: Path) -> Path:
    return folder / (WEIGHTS_FILE if (folder / WEIGHTS_FILE).is_file() else HEADS_FILE)


def _origin(meta: dict[str, Any], weights: Path) -> Origin:
    try:
        return Origin.from_plain(meta)
    except RunError as error:
        message = f"{weights} is damaged ({error}); use another or train again"
        raise RunError(message, path=weights, location=error.location, name=error.name) from None


def load_checkpointed(
    folder: Path, tensors: Mapping[str, torch.Tensor], origin: Origin
) -> SavedStudent:
    """Load a student from the tensors of a checkpoint.

    Args:
        folder: The run's ``best/``, where a Hugging Face student's configuration lies.
        tensors: The checkpoint's.
        origin: Where they come from.

    Raises:
        CusaError: If they do not fit the student that the origin names.
    """
    return _filled(folder, under("student", tensors), origin, exported=False)


def _filled(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    origin: Origin,
    exported: bool,
) -> SavedStudent:
    """A student with these weights; of an exported one, those of its heads alone."""
    backbone, processors = None, None
    if origin.config.student.name == "adapter":
        dims = (origin.provenance.encoders[m].settings.dim for m in ("image", "text"))
        with torch.device("meta"):  # nothing is allocated for sizes that the weights do not have
            student = adapter_student(origin.config.student, *dims)
    else:
        student, processors, backbone = dual_encoder_student(
            origin.config.student,
            str(folder),
            exported,
        )
    expected = student.state_dict()
    if exported:
        expected = {name: tensor for name, tensor in expected.items() if "_heads." in name}
    if problem := unlike(tensors, expected):
        unfit = f"the weights in {folder} do not fit the configuration beside them ({problem})"
        message = f"{unfit}; was a file changed?"
        raise StudentError(message, path=folder)
    if backbone is None:
        student.to_empty(device="cpu")
    student.load_state_dict(tensors, strict=not exported)
    if exported and (problem := not_finite(student.state_dict())):
        raise StudentError(
            f"the weights in {folder} cannot be used ({problem}); export them again",
            path=folder,
        )
    return SavedStudent(student.eval(), backbone, processors, origin)

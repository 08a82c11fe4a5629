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
from typing import Any

import torch

from cusa.data.errors import CusaError
from cusa.train.config import Config, build_config
from cusa.train.provenance import Provenance
from cusa.train.student import Head, Processors, Student, adapter_student, dual_encoder_student
from cusa.train.tensors import load_tensors, save_tensors, under

WEIGHTS_FILE = "student.safetensors"
HEADS_FILE = "heads.safetensors"
BEST_FOLDER = "best"


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
        return plain | {"config": config, "provenance": self.provenance.plain(), "val": dict(self.val)}

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> Origin:
        """The inverse of :meth:`plain`."""
        config, provenance = build_config(content["config"]), Provenance.from_plain(content["provenance"])
        return Origin(**{**content, "config": config, "provenance": provenance})


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
        raise CusaError(f"{path} holds no best student yet; has the run finished its first epoch?")
    raise CusaError(f"{path} holds no student; pass a run directory of cusa-train, its best/, or an exported folder")


def load_saved(path: Path) -> SavedStudent:
    """Load a student from a run directory (its best one), or from a folder that holds one.

    Raises:
        CusaError: If there is none, or it is damaged; says what to do.
    """
    folder = student_folder(path)
    exported = not (folder / WEIGHTS_FILE).is_file()
    tensors, meta = load_tensors(folder / (HEADS_FILE if exported else WEIGHTS_FILE))
    return _filled(folder, tensors, Origin.from_plain(meta), pretrained=exported)


def load_checkpointed(folder: Path, tensors: Mapping[str, torch.Tensor], origin: Origin) -> SavedStudent:
    """A student from the tensors of a checkpoint; ``folder`` is the run's ``best/``, where its configuration lies."""
    return _filled(folder, under("student", tensors), origin, pretrained=False)


def _filled(folder: Path, tensors: Mapping[str, torch.Tensor], origin: Origin, pretrained: bool) -> SavedStudent:
    backbone, processors = None, None
    if origin.config.student.name == "adapter":
        dims = (origin.provenance.encoders[m].settings.dim for m in ("image", "text"))
        student = adapter_student(origin.config.student, *dims)
    else:
        student, processors, backbone = dual_encoder_student(origin.config.student, str(folder), pretrained)
    expected = set(student.state_dict())
    if pretrained:
        expected = {name for name in expected if "_heads." in name}
    try:
        found = student.load_state_dict(tensors, strict=False)
        fits = not expected & set(found.missing_keys) and not found.unexpected_keys
    except RuntimeError:  # other shapes
        fits = False
    if not fits:
        raise CusaError(f"the weights in {folder} do not fit the configuration beside them; was a file changed?")
    return SavedStudent(student.eval(), backbone, processors, origin)

"""Checkpoints: one safetensors file each, written atomically, with what goes on from it in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.data.schema import TeacherSettings
from cusa.train.config import Config, build_config, load_config_file
from cusa.train.student import Processors, Student, adapter_student, dual_encoder_student

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
STUDENT_FOLDER = "student"


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """Path of the checkpoint ``"best"`` or ``"last"`` of a run."""
    return run_dir / "checkpoints" / f"{name}.safetensors"


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-compatible metadata; the old file stays until the new one is whole."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # clone: tied weights may be shared
    with atomic_file(path) as temporary:
        save_file(plain, temporary, {"cusa": json.dumps(meta)})


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint.

    Raises:
        CusaError: If it is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = (file.metadata() or {}).get("cusa")
            if meta is None:
                raise CusaError(f"{path} is not a checkpoint of cusa-train")
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(meta)  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise CusaError(f"checkpoint {path} does not exist; has the run finished its first epoch?") from None
    except SafetensorError as error:
        raise CusaError(f"checkpoint {path} is damaged ({error}); use another or train again") from None


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl; a last line that a kill cut off is left out."""
    path = run_dir / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under ``prefix.``."""
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`prefixed`, other names left out."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


@dataclass(frozen=True)
class Provenance:
    """What a run was trained on; kept as run.json.

    Attributes:
        dataset: Name of the data set.
        splits: Fingerprint by split name.
        teachers: Settings of the soft labels' teachers by ``"image"`` and ``"text"``; names beside them.
        encoders: Same for an adapter's frozen encoders; empty for other students.
    """

    dataset: str
    splits: dict[str, str]
    teachers: dict[str, tuple[str, TeacherSettings]]
    encoders: dict[str, tuple[str, TeacherSettings]]

    def to_json(self) -> str:
        """As text."""

        def plain(named: dict[str, tuple[str, TeacherSettings]]) -> dict[str, Any]:
            return {m: {"name": n, "settings": json.loads(s.to_json())} for m, (n, s) in named.items()}

        content = {"dataset": self.dataset, "splits": self.splits}
        content |= {"teachers": plain(self.teachers), "encoders": plain(self.encoders)}
        return json.dumps(content, indent=2)

    @staticmethod
    def from_json(text: str) -> Provenance:
        """The inverse of :meth:`to_json`."""
        content = json.loads(text)

        def named(part: dict[str, Any]) -> dict[str, tuple[str, TeacherSettings]]:
            return {m: (v["name"], TeacherSettings.from_json(json.dumps(v["settings"]))) for m, v in part.items()}

        return Provenance(content["dataset"], content["splits"], named(content["teachers"]), named(content["encoders"]))


@dataclass(frozen=True)
class LoadedStudent:
    """A trained student.

    Attributes:
        student: The model, in eval mode, on the CPU.
        processors: Image processor and tokeniser of a Hugging Face student; ``None`` for the adapter.
        config: The run's settings.
        provenance: What it was trained on.
        epoch: Epoch that the checkpoint was written after, counted from 1.
    """

    student: Student
    processors: Processors | None
    config: Config
    provenance: Provenance
    epoch: int


def load_run(run_dir: Path) -> tuple[Config, Provenance]:
    """Settings and provenance of a run directory.

    Raises:
        CusaError: If it is not one.
    """
    if not (run_dir / CONFIG_FILE).is_file() or not (run_dir / PROVENANCE_FILE).is_file():
        raise CusaError(
            f"{run_dir} is not a run directory (no {CONFIG_FILE} and {PROVENANCE_FILE}); make one: cusa-train"
        )
    try:
        provenance = Provenance.from_json((run_dir / PROVENANCE_FILE).read_text())
    except (ValueError, KeyError, TypeError):
        raise CusaError(f"{run_dir / PROVENANCE_FILE} is damaged; restore it or train again") from None
    return build_config(load_config_file(run_dir / CONFIG_FILE)), provenance


def load_student(run_dir: Path | str, checkpoint: str = "best") -> LoadedStudent:
    """Load the student of a run directory.

    Args:
        run_dir: Directory that cusa-train wrote.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        CusaError: If the directory or the checkpoint is missing or damaged.
    """
    run_dir = Path(run_dir)
    config, provenance = load_run(run_dir)
    tensors, meta = load_checkpoint(checkpoint_path(run_dir, checkpoint))
    processors = None
    if config.student.name == "adapter":
        dims = (provenance.encoders[m][1].dim for m in ("image", "text"))
        student = adapter_student(config.student, *dims)
    else:
        student, processors, _ = dual_encoder_student(config.student, str(run_dir / STUDENT_FOLDER), pretrained=False)
    try:
        student.load_state_dict(under("student", tensors))
    except RuntimeError:
        raise CusaError(
            f"{run_dir}: checkpoint {checkpoint!r} does not fit {CONFIG_FILE}; was that file changed?"
        ) from None
    return LoadedStudent(student.eval(), processors, config, provenance, int(meta["epoch"]))

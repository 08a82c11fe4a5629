"""Folders of models: a student's, its exports, and a dual encoder's own; every one of
their files.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cusa.eval.models.any_model import load_encoder
from cusa.eval.models.student import load_student
from cusa.train.build_student import build_student
from cusa.train.config_building import build_config
from cusa.train.saving.export import export_hf, export_sentence_transformers
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.student_folder import (
    HEADS_FILE,
    WEIGHTS_FILE,
    Origin,
    SavedStudent,
    load_saved,
    save_student,
)
from cusa.train.student_config import StudentConfig
from tests.fuzz.harness import Target
from tests.fuzz.mutations import (
    BYTE_MUTATORS,
    Mutator,
    mutate_json,
    mutate_pickle,
    mutate_safetensors,
    mutate_zip,
)
from tests.fuzz.readings import arrays_of, reseal_tensors, resealed
from tests.tiny_models import TEXTS, pictures, save_clip

_TEXTS, _PICTURES = TEXTS[:2], pictures(2)
_TOLERANCE = 1e-5


@cache
def folders() -> Path:
    """Folders ``clip``, ``student``, ``hf`` and ``st``, made once in a process."""
    root = Path(tempfile.mkdtemp(prefix="cusa-fuzz-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    clip = root / "clip"
    save_clip(clip)
    config = build_config(
        {"student": {"name": str(clip), "embed_dim": 8}, "loss": {"terms": ["contrastive", "usa"]}}
    )
    torch.manual_seed(0)
    student, towers = build_student(config.student)
    origin = Origin(config, Provenance("made-up", {}, {}, {}), 1, 1, {}, 1)
    saved = SavedStudent(student.eval(), towers, origin)
    save_student(root / "student" / WEIGHTS_FILE, student, origin)
    towers.save(root / "student")
    export_hf(saved, root / "hf")
    export_sentence_transformers(saved, root / "st")
    return root


def make_folder(kind: str, name: str) -> Callable[[Path], Path]:
    """A maker of one of the folders, that names one of its files."""
    return lambda folder: shutil.copytree(folders() / kind, folder / kind) / name


def make_pickled(folder: Path) -> Path:
    """A dual encoder whose weights are pickled, as older models have them."""
    weights = make_folder("clip", "model.safetensors")(folder)
    tensors = {
        name: torch.from_numpy(array.copy())
        for name, array in arrays_of(weights.read_bytes()).items()
    }
    weights.unlink()
    torch.save(tensors, weights.with_name("pytorch_model.bin"))
    return weights.with_name("pytorch_model.bin")


# --- what is read


def read_student(path: Path) -> dict[str, Any]:
    """Embeddings of a student."""
    return embeddings(load_student(model_folder(path), "cpu"), path)


def read_encoder(path: Path) -> dict[str, Any]:
    """Embeddings of any model."""
    return embeddings(load_encoder(str(model_folder(path)), "cpu"), path)


def model_folder(path: Path) -> Path:
    """The folder that the makers copied."""
    return next(parent for parent in path.parents if parent.name in ("clip", "student", "hf", "st"))


def embeddings(encoder: Any, path: Path) -> dict[str, Any]:
    """Embeddings of two pictures and two texts by head, and what the file says."""
    rows = {"image": encoder.image_rows(_PICTURES), "text": encoder.text_rows(_TEXTS)}
    return {"says": document_of(path), "rows": rows}


def document_of(path: Path) -> bytes:
    """What a JSON file says, in one form: 3.0 is not 3 to transformers; of another
    file, its bytes.
    """
    content = path.read_bytes()
    try:
        return json.dumps(json.loads(content), sort_keys=True).encode()
    except (ValueError, RecursionError):
        return content


def are_embeddings(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Whether all rows are finite and of length one; and those of the valid file, if the file says
    the same.
    """
    for modality, heads in read["rows"].items():
        for head, rows in heads.items():
            lengths = np.linalg.norm(rows, axis=1)
            if (
                len(rows) != 2
                or not np.isfinite(rows).all()
                or not np.allclose(lengths, 1, atol=_TOLERANCE)
            ):
                return False
            says_the_same = read["says"] == valid["says"]
            if says_the_same and not np.allclose(
                rows, valid["rows"][modality][head], atol=_TOLERANCE
            ):
                return False
    return True


def are_unchanged(valid: dict[str, Any], read: dict[str, Any], path: Path) -> bool:
    """Whether rows are those of the valid file: a checksum leaves nothing else."""
    return are_embeddings(valid, {**read, "says": valid["says"]}, path)


# --- weights


def read_exported_weights(path: Path) -> dict[str, np.ndarray]:
    """The backbone's weights of an exported student."""
    return weights_of(load_saved(path.parent).backbone)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights that training would begin with."""
    folder = str(path.parent)
    return weights_of(build_student(StudentConfig(name=folder)).towers.backbone)


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Parameters of a model."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def are_weights_of_file(valid: Any, read: dict[str, np.ndarray], path: Path) -> bool:
    """Whether every parameter is the file's, in float32 and finite."""
    arrays = (
        arrays_of(path.read_bytes()) if path.suffix == ".safetensors" else pickled_arrays_of(path)
    )
    for name, values in read.items():
        written = arrays[name].astype(np.float32)
        if (
            not np.isfinite(values).all()
            or values.shape != written.shape
            or not np.array_equal(values, written)
        ):
            return False
    return True


def pickled_arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a pickled file, read as transformers reads it where a record is longer than
    its tensor.
    """
    try:
        tensors = torch.load(path, weights_only=True)
    except RuntimeError:
        tensors = torch.load(path, weights_only=True, mmap=True)
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


_JSON: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_json,) * 16)
_SEALED: tuple[Mutator, ...] = (resealed(mutate_json), resealed(mutate_json), reseal_tensors)
_TENSORS: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_safetensors,) * 6)
_PICKLED: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_zip(mutate_pickle),) * 6)
_MODULES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "processor_config.json",
    "1_Router/router_config.json",
    "1_Router/text_1_Dense/config.json",
    "1_Router/text_0_LayerNorm/config.json",
)
_SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")

TARGETS = (
    *(
        Target(f"student/{name}", make_folder("student", name), _JSON, read_student, are_embeddings)
        for name in _SETTINGS
    ),
    Target(
        "student/weights",
        make_folder("student", WEIGHTS_FILE),
        BYTE_MUTATORS,
        read_student,
        are_unchanged,
    ),
    Target(
        "student/weights-sealed",
        make_folder("student", WEIGHTS_FILE),
        _SEALED,
        read_student,
        are_embeddings,
    ),
    Target(
        "export-hf/config.json",
        make_folder("hf", "config.json"),
        _JSON,
        read_student,
        are_embeddings,
    ),
    Target(
        "export-hf/heads", make_folder("hf", HEADS_FILE), BYTE_MUTATORS, read_student, are_unchanged
    ),
    Target(
        "export-hf/weights",
        make_folder("hf", "model.safetensors"),
        _TENSORS,
        read_exported_weights,
        are_weights_of_file,
    ),
    *(
        Target(f"encoder/{name}", make_folder("clip", name), _JSON, read_encoder, are_embeddings)
        for name in _SETTINGS
    ),
    *(
        Target(f"export-st/{name}", make_folder("st", name), _JSON, read_encoder, are_embeddings)
        for name in _MODULES
    ),
    Target(
        "export-st/dense-weights",
        make_folder("st", "1_Router/text_1_Dense/model.safetensors"),
        _TENSORS,
        read_encoder,
        are_embeddings,
    ),
    Target(
        "encoder/weights",
        make_folder("clip", "model.safetensors"),
        _TENSORS,
        read_weights,
        are_weights_of_file,
    ),
    Target("encoder/weights-pickled", make_pickled, _PICKLED, read_weights, are_weights_of_file),
)

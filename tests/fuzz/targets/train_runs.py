"""Files of a run: settings, provenance, log, checkpoints, and the best student of an adapter."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
import yaml

from cusa.train.config import Config
from cusa.train.saving.plain_values import checked
from cusa.train.saving.run_dir import Checkpoints, load_run, read_history
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import Origin, load_saved
from cusa.train.saving.tensors import load_tensors
from cusa.train.sweep import parse_grid, summarize
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_json, mutate_json_lines, mutate_yaml
from tests.fuzz.readings import (
    is_overlaid,
    is_same,
    is_taken_from,
    json_of,
    reseal_tensors,
    resealed,
)
from tests.helpers import make_store, run, run_ok

CONFIG, PROVENANCE, LOG, STUDENT = (
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "best/student.safetensors",
)
SMALL = (
    "--student",
    "adapter",
    "--set",
    "student.hidden_dim=8",
    "--set",
    "student.embed_dim=4",
    "--loss",
    "cusa",
)


@cache
def trained_run() -> Path:
    """A folder with a store and an adapter trained on it for two epochs, made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="cusa-fuzz-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = make_store(folder / "store", {"train": 12, "val": 6}, dim=6)
    run_ok(
        "train",
        "--embeddings",
        store,
        "--run-dir",
        folder / "run",
        *SMALL,
        "--batch-size",
        8,
        "--epochs",
        2,
    )
    return folder


def make_run(folder: Path) -> Path:
    """The trained run, copied; its directory."""
    return shutil.copytree(trained_run() / "run", folder / "run")


def make_file(name: str) -> Callable[[Path], Path]:
    """A maker of a run, that names one of its files."""
    return lambda folder: make_run(folder) / name


def make_checkpoint(folder: Path) -> Path:
    """A run; its newest checkpoint."""
    return Checkpoints(make_run(folder)).paths()[-1]


# --- settings and provenance


def read_config(path: Path) -> dict[str, Any]:
    """Settings of the run."""
    return dataclasses.asdict(load_run(path.parent)[0])


def is_config_as_written(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether all settings are as PyYAML reads them, or at their defaults."""
    written = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    return is_overlaid(read, written, dataclasses.asdict(Config()))


def read_provenance(path: Path) -> dict[str, Any]:
    """Provenance of the run, as plain values."""
    return dataclasses.asdict(load_run(path.parent)[1])


def is_provenance_as_written(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether all of it is as JSON's own parser reads it."""
    return is_taken_from(_without_absent(read), json_of(path), {"beginning": None})


def _without_absent(provenance: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(provenance))


# --- the log


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of the log."""
    return read_history(path.parent).lines


def is_log_as_written(valid: list[Any], read: list[Any], path: Path) -> bool:
    """Whether every line read is one of the file, in order, and no line is lost that is
    as it was.
    """
    written = []
    for line in path.read_bytes().split(b"\n"):
        try:
            written.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    remaining = iter(written)
    if not all(any(is_same(line, other) for other in remaining) for line in read):
        return False
    kept = [line for line in written if any(is_same(line, good) for good in valid)]
    return sum(any(is_same(line, good) for good in valid) for line in read) == len(kept)


def make_swept(folder: Path) -> Path:
    """A run as the only one of a grid; its log."""
    shutil.copytree(trained_run() / "run", folder / "seed-0")
    return folder / "seed-0" / LOG


def read_sweep(path: Path) -> dict[str, Any] | None:
    """Scores at the best and at the last epoch, as the table of a grid has them."""
    [row] = summarize(path.parent.parent, parse_grid(["seed=0"]))
    return None if row.mean is None else {epoch: dict(scores) for epoch, scores in row.mean.items()}


def are_scores_of_log(valid: Any, read: dict[str, Any] | None, path: Path) -> bool:
    """Whether they are those of the last validation, and of the last that was the best, by JSON's
    own parser.
    """
    lines = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    validations = [line for line in lines if _is_validation(line)]
    last, best = validations[-1], [line for line in validations if line["best"]][-1]
    expected = {
        "best": {name: best[name] for name in _SCORES},
        "last": {name: last[name] for name in _SCORES},
    }
    return read is not None and is_same(read, expected)


_SCORES = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


def _is_validation(line: Any) -> bool:
    """Whether a line is a whole one of a validation."""
    if (
        not isinstance(line, dict)
        or line.get("kind") != "val"
        or not isinstance(line.get("best"), bool)
    ):
        return False
    if type(line.get("step")) is not int or type(line.get("epoch")) not in (int, float):
        return False
    values_are_plain = all(isinstance(value, (bool, int, float, str)) for value in line.values())
    numbers = [value for value in line.values() if isinstance(value, float)]
    scores = [line[name] for name in _SCORES if name in line]
    recalls = [line[name] for name in _SCORES[:-1] if name in line]
    return (
        "rsum" in line
        and values_are_plain
        and all(map(math.isfinite, numbers))
        and all(type(score) in (int, float) for score in scores)
        and all(0 <= recall <= 100 for recall in recalls)
    )


# --- weights


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes, with its dtype and shape."""
    return {
        name: f"{tensor.dtype} {tuple(tensor.shape)} {_bytes_digest(tensor)}"
        for name, tensor in sorted(tensors.items())
    }


def _bytes_digest(tensor: torch.Tensor) -> str:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def read_student(path: Path) -> dict[str, Any]:
    """Weights and origin of the best student."""
    saved = load_saved(path.parent)
    return {"weights": digests(saved.student.state_dict()), "origin": saved.origin.to_dict()}


def is_unchanged(valid: Any, read: Any, path: Path) -> bool:
    """Whether what was read is what the valid file holds: its checksum leaves nothing else."""
    return is_same(read, valid)


_ORIGIN_DEFAULTS: dict[str, Any] = {"beginning": None, "processes": 1}


def is_origin_as_written(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether a file that was sealed again was read as it says: weights bit by bit, origin by
    JSON's own parser.
    """
    header = _header(path)
    written = json.loads(header["__metadata__"]["cusa"])
    origin = dict(read["origin"])
    defaults = dataclasses.asdict(Config())
    same_config = is_overlaid(origin.pop("config"), written.get("config"), defaults)
    same_origin = is_taken_from(_without_absent(origin), written, _ORIGIN_DEFAULTS)
    return same_config and same_origin and read["weights"] == _digests_in(path)


def _header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _digests_in(path: Path) -> dict[str, str]:
    """As :func:`digests`, from the file's own bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    digest_of = {}
    for name, about in sorted(_header(path).items()):
        if name == "__metadata__":
            continue
        first, last = about["data_offsets"]
        digest = hashlib.sha256(content[start + first : start + last]).hexdigest()
        digest_of[name] = f"{_DTYPES[about['dtype']]} {tuple(about['shape'])} {digest}"
    return digest_of


_DTYPES = {
    "F32": "torch.float32",
    "F64": "torch.float64",
    "F16": "torch.float16",
    "U8": "torch.uint8",
}


# --- checkpoints


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The newest checkpoint that is whole, and how many newer ones are not."""
    newest, problems = Checkpoints(path.parent.parent).newest()
    assert newest is not None
    meta = {
        "origin": newest.origin.to_dict(),
        "progress": asdict(newest.progress),
        "scaler": newest.scaler,
    }
    return {"tensors": digests(newest.tensors), "meta": meta, "problems": len(problems)}


def _meta_as_read(meta: Any) -> dict[str, Any]:
    """The metadata of a file, with what earlier versions did not write."""
    return {
        "origin": Origin.from_dict(meta["origin"]).to_dict(),
        "progress": asdict(checked(Progress, meta["progress"], "progress")),
        "scaler": meta["scaler"],
    }


def is_newest_or_older(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether it is the newest, or the one before it with a note on the newest."""
    if read["problems"] == 0:
        return is_same(read, valid)
    tensors, meta = load_tensors(Checkpoints(path.parent.parent).paths()[0])
    return is_same(read, {"tensors": digests(tensors), "meta": _meta_as_read(meta), "problems": 1})


def is_sealed_newest_or_older(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """The same of a checkpoint that was sealed again: it may say other things, of the
    same tensors.
    """
    if read["problems"]:
        return is_newest_or_older(valid, read, path)
    return read["tensors"] == _digests_in(path) and is_same(
        read["meta"], _meta_as_read(json.loads(_header(path)["__metadata__"]["cusa"]))
    )


def read_by_resuming(path: Path) -> dict[str, str]:
    """The weights that ``cusa-train --resume`` ends with."""
    run_dir = path.parent.parent
    command_line("train", "--resume", "--run-dir", run_dir)
    newest, _ = Checkpoints(run_dir).newest()
    assert newest is not None
    return digests(newest.tensors)


def command_line(command: str, *arguments: object) -> str:
    """Output of a command.

    Raises:
        ClickException: If it fails with one line.
        BaseException: Whatever else it raises.
    """
    result = run(command, *arguments)
    if result.exit_code == 0:
        return result.output
    if not isinstance(result.exception, SystemExit):
        assert result.exception is not None
        raise result.exception
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.output
    raise click.ClickException(errors[0])


def is_any(valid: Any, read: Any, path: Path) -> bool:
    """Of a file that was sealed again with other content: whatever it says is right, so long as it
    is no crash.
    """
    return True


_BYTES: tuple[Mutator, ...] = BYTE_MUTATORS
_SEALED: tuple[Mutator, ...] = (resealed(mutate_json), resealed(mutate_json), reseal_tensors)

TARGETS = (
    Target(
        "run/config",
        make_file(CONFIG),
        (*_BYTES, mutate_yaml, mutate_yaml),
        read_config,
        is_config_as_written,
    ),
    Target(
        "run/provenance",
        make_file(PROVENANCE),
        (*_BYTES, mutate_json, mutate_json),
        read_provenance,
        is_provenance_as_written,
    ),
    Target(
        "run/log",
        make_file(LOG),
        (*_BYTES, mutate_json_lines, mutate_json_lines),
        read_log,
        is_log_as_written,
    ),
    Target(
        "run/sweep",
        make_swept,
        (*_BYTES, *(mutate_json_lines,) * 4),
        read_sweep,
        are_scores_of_log,
        weight=2,
    ),
    Target("run/student", make_file(STUDENT), _BYTES, read_student, is_unchanged),
    Target("run/student-sealed", make_file(STUDENT), _SEALED, read_student, is_origin_as_written),
    Target("run/checkpoint", make_checkpoint, _BYTES, read_checkpoint, is_newest_or_older),
    Target(
        "run/checkpoint-sealed",
        make_checkpoint,
        _SEALED,
        read_checkpoint,
        is_sealed_newest_or_older,
    ),
    Target("run/resume", make_checkpoint, _BYTES, read_by_resuming, is_unchanged),
    Target("run/resume-sealed", make_checkpoint, _SEALED, read_by_resuming, is_any),
)

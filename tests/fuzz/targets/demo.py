"""The embedded data set's own files: a damaged one is noticed, and the data set made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cusa.data.demo_set.make import make_demo
from tests.fuzz.harness import Target
from tests.fuzz.mutations import (
    BYTE_MUTATORS,
    Mutator,
    mutate_json,
    mutate_json_lines,
    mutate_npy,
    mutate_zip,
)


def _make(file_name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        make_demo(folder, n_train=2, n_val=1, n_test=1)
        return folder / file_name

    return make


def _read(path: Path) -> Any:
    dataset = make_demo(path.parent, n_train=2, n_val=1, n_test=1)
    truth = {
        name: [rows.tolist() for rows in (known.image_labels, known.indptr, known.indices)]
        for name, known in dataset.truth.items()
    }
    return dataset.splits, truth


def _target(file_name: str, mutator: Mutator) -> Target:
    return Target(
        name=f"demo/{file_name.split('.')[0]}",
        make=_make(file_name),
        mutators=(mutator,) * 8 + BYTE_MUTATORS,
        read=_read,
        agrees=lambda valid, value, _: valid == value,
        weight=0.3,
    )


TARGETS = (
    _target("demo.json", mutate_json),
    _target("manifest.jsonl", mutate_json_lines),
    _target("truth.npz", mutate_zip(mutate_npy)),
)

"""What a teacher's rows must be, checked on its first batch: before hours are spent on others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import torch

from cusa.data.errors import TeacherError
from cusa.precompute.teachers.base import SizeGroups, Teacher, TeacherInputs

# Greatest difference between two rows that count as one, or as the same row computed twice. A GPU
# may add in another order each time.
EQUAL_ROWS = 1e-6
REPEATED_ROWS = {"cpu": 1e-5, "cuda": 1e-2}
_LEAST_NORM = 0.5
# Captions that a tokeniser must tell apart by half: fewer may well be of unknown words alone.
_ENOUGH_CAPTIONS = 8


class FirstBatchCheck:
    """Refuses a teacher whose rows do not tell inputs apart, or change from pass to pass.

    It looks at the first batch, and goes on until it has seen two different inputs: a data set may
    begin with copies of one picture. Several threads may call it.

    Args:
        teacher: The teacher.
        device: Where it is.
        precision: What it computes in.
    """

    def __init__(self, teacher: Teacher, device: str, precision: str) -> None:
        self._teacher, self._device, self._precision = teacher, device, precision
        self._lock = Lock()
        self._is_over, self._is_repeated = False, False
        self._row_of_input: dict[str, np.ndarray] = {}
        self._row_of_caption: dict[str, np.ndarray] = {}

    def __call__(
        self,
        name: str,
        inputs: TeacherInputs,
        rows: np.ndarray,
        captions: Sequence[str] | None = None,
    ) -> None:
        """Check a batch if it is among the first.

        Args:
            name: The teacher's name.
            inputs: As :meth:`Teacher.rows` takes them.
            rows: What that returned.
            captions: Texts: the captions, or other keys that tell them apart.

        Raises:
            TeacherError: If the rows are wrong, or a second pass fails.
        """
        if self._is_over:
            return
        with self._lock:
            if not self._is_over:  # another thread may have ended it meanwhile
                self._check(name, inputs, rows, captions)

    def _check(
        self,
        name: str,
        inputs: TeacherInputs,
        rows: np.ndarray,
        captions: Sequence[str] | None,
    ) -> None:
        if not self._is_repeated:
            self._is_repeated = True
            self._refuse_shape(name, rows)
            repeated = self._teacher.rows(inputs, self._device, self._precision)
            self._refuse_changes(name, rows, repeated)
        usable = ~is_zero(rows) & np.isfinite(rows).all(axis=1)  # others are told of elsewhere
        self._row_of_input |= _usable(input_digests(inputs), rows, usable)
        self._row_of_caption |= _usable(captions or (), rows, usable)
        self._is_over = len(self._row_of_input) > 1 or len(self._row_of_caption) >= _ENOUGH_CAPTIONS
        if self._is_over:
            kind = "captions" if self._teacher.modality == "text" else "images"
            self._refuse_equal_rows(name, self._row_of_input, kind)
            if len(self._row_of_caption) >= _ENOUGH_CAPTIONS:
                self._refuse_equal_rows(name, self._row_of_caption, kind)
            self._row_of_input, self._row_of_caption = {}, {}

    def _refuse_shape(self, name: str, rows: np.ndarray) -> None:
        if rows.shape[1] != self._teacher.dim:
            raise TeacherError(
                f"teacher {name!r} ({self._teacher.model_id}) gives {rows.shape[1]} numbers for "
                f"each item, not the {self._teacher.dim} that it declares; check "
                f"{self._teacher.source}",
                name=name,
            )

    def _refuse_changes(self, name: str, first: np.ndarray, second: np.ndarray) -> None:
        tolerance = REPEATED_ROWS[torch.device(self._device).type]
        finite = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        first, second = first[finite], second[finite]
        if np.abs(first - second).max(initial=0) > tolerance:
            cosine = float((first * second).sum(axis=1).min())
            raise TeacherError(
                f"teacher {name!r} ({self._teacher.model_id}): a second pass over its first batch "
                f"gives other rows (least cosine {cosine:.4f}); it computes with random numbers, "
                "use another model",
                name=name,
            )

    def _refuse_equal_rows(self, name: str, row_of: Mapping[str, np.ndarray], kind: str) -> None:
        """Refuse rows of different items of which half or more repeat another."""
        if len(row_of) < 2:
            return
        n_different = count_different(np.stack(list(row_of.values())))
        preparation = "tokeniser" if self._teacher.modality == "text" else "image processor"
        if 2 * n_different <= len(row_of):
            raise TeacherError(
                f"teacher {name!r} ({self._teacher.model_id}): {len(row_of)} different {kind} of "
                f"its first batch have only {n_different} different row(s); its {preparation} or "
                f"weights are not the right ones, check {self._teacher.source}",
                name=name,
            )


def _usable(keys: Sequence[str], rows: np.ndarray, usable: np.ndarray) -> dict[str, np.ndarray]:
    return {key: rows[number] for number, key in enumerate(keys) if usable[number]}


def is_zero(rows: np.ndarray) -> np.ndarray:
    """Bool ``[n]``: which L2-normalised rows are of features that were all zero."""
    return np.linalg.norm(rows, axis=1) < _LEAST_NORM


def count_different(rows: np.ndarray) -> int:
    """How many of the rows ``[n, dim]`` are not within :data:`EQUAL_ROWS` of an earlier one."""
    different = rows[:0]
    for row in rows:
        if not len(different) or np.abs(different - row).max(axis=1).min() > EQUAL_ROWS:
            different = np.concatenate([different, row[None]])
    return len(different)


def input_digests(inputs: TeacherInputs) -> list[str]:
    """A digest of each item of a batch; none where its tensors are not one row per item."""
    if isinstance(inputs, SizeGroups):
        digests = [""] * len(inputs)
        for group, positions in zip(inputs.groups, inputs.positions, strict=True):
            for position, digest in zip(positions.tolist(), input_digests(group), strict=True):
                digests[position] = digest
        return digests
    values = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim]
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or arrays[0].ndim < 2:  # such as the token ids of all texts in one row
        return []
    parts = ([array[number].tobytes() for array in arrays] for number in range(len(arrays[0])))
    return [hashlib.sha256(b"".join(part)).hexdigest() for part in parts]

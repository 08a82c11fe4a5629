"""The check of a teacher's first batches, before hours are spent on others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import compress
from threading import Lock
from typing import Any

import numpy as np
import torch

from cusa.data.errors import TeacherError
from cusa.precompute.teachers.base import SizeGroups, Teacher, TeacherInputs

# ``location`` of the errors of rows with another dimension than declared, and of rows that change.
ROW_DIM = "row dimension"
SECOND_PASS = "second pass"
# Greatest difference of any number in two rows that count as equal.
EQUAL_ROWS = 1e-6
# The same for a row that is computed twice. A GPU may add in another order each time.
REPEATED_ROWS = {"cpu": 1e-5, "cuda": 1e-2}
# Rows are L2-normalised: their norm is 1, or 0 where all features were 0.
_LEAST_NORM = 0.5
# From this many captions on, rows are compared: fewer may consist of unknown words only.
_ENOUGH_CAPTIONS = 8


class EqualRowsError(TeacherError):
    """A teacher gives different items the same row.

    Args:
        message: The line.
        n_items: Number of different items.
        n_different: Number of different rows among theirs.
        fields: Fields of :class:`.CusaError`.
    """

    def __init__(
        self,
        message: str,
        *,
        n_items: int = 0,
        n_different: int = 0,
        **fields: Any,
    ) -> None:
        super().__init__(message, **fields)
        self.n_items = n_items
        self.n_different = n_different


class FirstBatchCheck:
    """A check that refuses a teacher whose rows are all alike, or change from pass to pass.

    It checks the first batch, and further ones until it has seen two different inputs, since a data
    set may begin with copies of one image. Several threads may call it.

    Args:
        teacher: The teacher.
        device: The teacher's device.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
    """

    def __init__(
        self,
        teacher: Teacher,
        device: str,
        precision: str,
    ) -> None:
        self._teacher = teacher
        self._device = device
        self._precision = precision
        self._lock = Lock()
        self._is_over = False
        self._is_repeated = False
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
            inputs: The batch, as for :meth:`Teacher.rows`.
            rows: float32 ``[n, dim]``: the rows that it returned.
            captions: For texts, a key of each, which is equal for equal captions only.

        Raises:
            TeacherError: If the rows have another dimension than declared, a second pass fails or
                changes them, or different items have equal rows (:class:`EqualRowsError`).
        """
        # Batches of other threads wait until the first ones are checked.
        with self._lock:
            if not self._is_over:
                self._check(name, inputs, rows, captions or ())

    def _check(
        self,
        name: str,
        inputs: TeacherInputs,
        rows: np.ndarray,
        captions: Sequence[str],
    ) -> None:
        if not self._is_repeated:
            self._is_repeated = True
            self._refuse_other_dim(name, rows.shape[1])
            repeated = self._teacher.rows(inputs, self._device, self._precision)
            self._refuse_changes(name, rows, repeated)

        # Rows that are zero or not finite are reported elsewhere, with their items.
        is_usable = ~is_zero(rows) & np.isfinite(rows).all(axis=1)
        digests = input_digests(inputs)
        self._row_of_input |= compress(zip(digests, rows, strict=False), is_usable)
        self._row_of_caption |= compress(zip(captions, rows, strict=False), is_usable)
        has_enough_captions = len(self._row_of_caption) >= _ENOUGH_CAPTIONS
        self._is_over = len(self._row_of_input) > 1 or has_enough_captions
        if not self._is_over:
            return

        self._refuse_equal_rows(name, self._row_of_input)
        if has_enough_captions:
            self._refuse_equal_rows(name, self._row_of_caption)
        self._row_of_input.clear()
        self._row_of_caption.clear()

    def _refuse_other_dim(
        self,
        name: str,
        dim: int,
    ) -> None:
        if dim != self._teacher.dim:
            raise TeacherError(
                f"teacher {name!r} ({self._teacher.model_id}) gives {dim} numbers for each item, "
                f"not the {self._teacher.dim} that it declares; check {self._teacher.source}",
                location=ROW_DIM,
                name=name,
            )

    def _refuse_changes(
        self,
        name: str,
        first_pass: np.ndarray,
        second_pass: np.ndarray,
    ) -> None:
        """Refuse rows that a second pass does not reproduce, up to rounding."""
        is_finite = np.isfinite(first_pass).all(axis=1)
        is_finite &= np.isfinite(second_pass).all(axis=1)
        first_pass = first_pass[is_finite]
        second_pass = second_pass[is_finite]
        tolerance = REPEATED_ROWS[torch.device(self._device).type]
        if np.abs(first_pass - second_pass).max(initial=0) > tolerance:
            least_cosine = float((first_pass * second_pass).sum(axis=1).min())
            raise TeacherError(
                f"teacher {name!r} ({self._teacher.model_id}): a second pass over its first batch "
                f"gives other rows (least cosine {least_cosine:.4f}); it computes with random "
                "numbers: use another model",
                location=SECOND_PASS,
                name=name,
            )

    def _refuse_equal_rows(
        self,
        name: str,
        row_of_item: Mapping[str, np.ndarray],
    ) -> None:
        """Refuse rows of different items if half of them or more repeat another row."""
        if len(row_of_item) < 2:
            return
        n_different = count_different(np.stack(list(row_of_item.values())))
        if 2 * n_different > len(row_of_item):
            return

        items, preparation = "images", "image processor"
        if self._teacher.modality == "text":
            items, preparation = "captions", "tokeniser"
        raise EqualRowsError(
            f"teacher {name!r} ({self._teacher.model_id}): {len(row_of_item)} different {items} of "
            f"its first batch have only {n_different} different row(s); its {preparation} or "
            f"weights are not the right ones, check {self._teacher.source}",
            name=name,
            n_items=len(row_of_item),
            n_different=n_different,
        )


def is_zero(rows: np.ndarray) -> np.ndarray:
    """Return which rows come from features that were all zero.

    Args:
        rows: float32 ``[n, dim]``, L2-normalised.

    Returns:
        bool ``[n]``.
    """
    return np.linalg.norm(rows, axis=1) < _LEAST_NORM


def count_different(rows: np.ndarray) -> int:
    """Count the rows ``[n, dim]`` that are not within :data:`EQUAL_ROWS` of an earlier one."""
    different = rows[:0]
    for row in rows:
        # The distance to each of the different rows so far.
        distances = np.abs(different - row).max(axis=1)
        if distances.min(initial=np.inf) > EQUAL_ROWS:
            different = np.concatenate([different, row[None]])
    return len(different)


def input_digests(inputs: TeacherInputs) -> list[str]:
    """Return a digest of each item of a batch; none if the tensors do not have a row per item."""
    if isinstance(inputs, SizeGroups):
        digests = [""] * len(inputs)
        for group, positions in zip(inputs.groups, inputs.positions, strict=True):
            for position, digest in zip(positions.tolist(), input_digests(group), strict=True):
                digests[position] = digest
        return digests

    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    arrays: list[np.ndarray] = []
    for value in values:
        if isinstance(value, torch.Tensor) and value.ndim:
            arrays.append(value.cpu().numpy())
    # Tensors may be flat, such as the concatenated token ids of all texts.
    if len(set(map(len, arrays))) != 1 or arrays[0].ndim < 2:
        return []
    return [_item_digest(item_arrays) for item_arrays in zip(*arrays, strict=True)]


def _item_digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()

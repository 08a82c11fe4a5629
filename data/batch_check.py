"""Refusal of batches that are larger than the pairs that can be trained on."""

from __future__ import annotations

from cusa.data.errors import SettingError, StoreError


def require_a_batch(
    n_batches: int,
    n_pairs: int,
    batch_size: int,
    n_processes: int,
    n_streams: int = 1,
) -> None:
    """Refuse an epoch without a batch.

    Args:
        n_batches: Batches of an epoch of one process.
        n_pairs: Trainable pairs.
        batch_size: Pairs per batch of one process.
        n_processes: Number of processes.
        n_streams: Number of streams that the pairs of a process are divided into.

    Raises:
        StoreError: If there is no trainable pair.
        SettingError: If a batch is larger than the trainable pairs.
    """
    if n_pairs == 0:
        raise StoreError(
            "no pair can be trained on: every image or every caption was skipped; "
            "see cusa-store info"
        )
    if n_batches == 0:
        batch = f"batch size {batch_size}"
        pairs = f"the {n_pairs} trainable pairs"
        remedy = "pass --batch-size"
        if n_processes > 1:
            batch += f" in each of {n_processes} processes"
        if n_streams > 1:
            pairs = f"a share of {pairs} in {n_streams} streams"
            remedy += " or --set data.streams=1"
        raise SettingError(f"{batch} is larger than {pairs}; {remedy}", name="batch_size")

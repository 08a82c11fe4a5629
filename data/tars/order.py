"""The order in which a set of tars is trained on: shuffled tars, and pairs in windows of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cusa.data.batch_check import require_a_batch


@dataclass(eq=False)
class SetOrder:
    """The batches of an epoch as int64 global pair numbers, shuffled by seed, epoch and tars.

    A pair's global number is that of the trainable pairs in the tars before it, in the manifest's
    order, plus its number among its tar's own. An epoch permutes the tars and cuts their pairs, one
    tar after the other, into ``size * streams`` equal segments, each of which is a stream. A stream
    goes through its tars in windows and through the pairs of a window in random order, so that a
    step needs no more than the permutation of the tars and of a window for each stream.

    Every pair occurs at most once in all processes. At most ``size * streams * (batch_size + 1)``
    are left out, others in each epoch.

    Attributes:
        tar_pairs: int64 ``[n_tars]``, the trainable pairs of each tar.
        batch_size: Pairs per batch of one process.
        seed: Seed of the order.
        window: How many tars the pairs of a stream are drawn from at a time, at most.
        streams: Streams of each process.
        mix_streams: Whether a batch is drawn from all streams equally, rather than from one stream
            after the other.
        rank: Number of this process.
        size: Number of processes.
        epoch: The epoch to iterate over, from 0.
        first: The first batch to yield; those before it are done.

    Raises:
        StoreError: If there is no trainable pair.
        SettingError: If a batch is larger than the pairs that it is drawn from.
    """

    tar_pairs: np.ndarray
    batch_size: int
    seed: int
    window: int = 8
    streams: int = 1
    mix_streams: bool = True
    rank: int = 0
    size: int = 1
    epoch: int = 0
    first: int = 0
    _epoch_tars: _EpochTars | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse too few pairs."""
        self.tar_pairs = np.asarray(self.tar_pairs, np.int64)
        require_a_batch(len(self), self.n_pairs, self.batch_size, self.size, self.streams)

    @property
    def n_pairs(self) -> int:
        """Return the number of trainable pairs."""
        return int(self.tar_pairs.sum())

    def __len__(self) -> int:
        """Return the batches of a whole epoch, whatever ``first`` is."""
        if self.mix_streams:
            return self._segment_pairs * self.streams // self.batch_size
        return self._segment_pairs // self.batch_size * self.streams

    def __iter__(self) -> Iterator[np.ndarray]:
        tars = self._tars()
        streams = [self._stream(tars, number) for number in range(self.streams)]
        for step in range(self.first, len(self)):
            shares: list[np.ndarray] = []
            for number, stream in enumerate(streams):
                shares.append(stream.positions(*self._bounds(step, number)))
            yield tars.pair_numbers(np.concatenate(shares))

    @property
    def _segment_pairs(self) -> int:
        return self.n_pairs // (self.size * self.streams)

    def _bounds(self, step: int, stream_number: int) -> tuple[int, int]:
        """Return the first pair of a stream that a step takes, and the one after its last."""
        if self.mix_streams:
            # These shares sum to the batch in every step: sum over s of (x + s) // streams is x.
            start = step * self.batch_size + stream_number
            return start // self.streams, (start + self.batch_size) // self.streams
        n_rounds, turn = divmod(step, self.streams)
        n_done = n_rounds * self.batch_size
        if stream_number != turn:
            return n_done, n_done
        return n_done, n_done + self.batch_size

    def _stream(self, tars: _EpochTars, number: int) -> _Stream:
        segment = self.rank * self.streams + number
        start = segment * self._segment_pairs
        key = (self.seed, self.epoch, segment)
        return _Stream(tars.starts, start, start + self._segment_pairs, self.window, key)

    def _tars(self) -> _EpochTars:
        if self._epoch_tars is None or self._epoch_tars.epoch != self.epoch:
            self._epoch_tars = _EpochTars(self.tar_pairs, self.seed, self.epoch)
        return self._epoch_tars


class _EpochTars:
    """The tars in the order of an epoch, without empty ones.

    A position is the number of a pair in this order; a slot is the number of a tar in it.

    Attributes:
        epoch: The epoch.
        numbers: int64 ``[n]``, the number of each tar in the manifest.
        starts: int64 ``[n + 1]``, the position of each tar's first pair, and the number of pairs.
    """

    def __init__(self, tar_pairs: np.ndarray, seed: int, epoch: int) -> None:
        generator = np.random.default_rng([seed, epoch])
        self.epoch = epoch
        self.numbers = generator.permutation(np.flatnonzero(tar_pairs))
        self.starts = np.append(0, np.cumsum(tar_pairs[self.numbers]))
        first_pairs = np.cumsum(tar_pairs) - tar_pairs
        self._shifts = first_pairs[self.numbers] - self.starts[:-1]

    def pair_numbers(self, positions: np.ndarray) -> np.ndarray:
        """Return the global pair numbers of positions: int64 ``[n]``."""
        slots = np.searchsorted(self.starts, positions, "right") - 1
        return positions + self._shifts[slots]


class _Stream:
    """A segment of an epoch's pairs, which goes through windows of its tars."""

    def __init__(
        self,
        tar_starts: np.ndarray,
        start: int,
        stop: int,
        window: int,
        key: tuple[int, ...],
    ) -> None:
        first_slot = int(np.searchsorted(tar_starts, start, "right")) - 1
        end_slot = int(np.searchsorted(tar_starts, stop, "left"))
        n_tars = end_slot - first_slot
        n_windows = -(-n_tars // window)
        # Equal windows, rather than a last one of few tars, whose pairs would hardly be mixed.
        self._window_slots = first_slot + np.arange(n_windows + 1) * n_tars // n_windows
        self._starts = tar_starts[self._window_slots].clip(start, stop)
        self._start = start
        self._key = key
        self._window_number = -1
        self._order = np.zeros(0, np.int64)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions of the pairs from one of the stream to another: int64 ``[n]``."""
        positions = np.zeros(stop - start, np.int64)
        n_done = 0
        while n_done < len(positions):
            next_pair = self._start + start + n_done
            window_number = self._window_at(next_pair)
            window_order = self._window(window_number)
            n_before = next_pair - int(self._starts[window_number])
            next_positions = window_order[n_before : n_before + len(positions) - n_done]
            positions[n_done : n_done + len(next_positions)] = next_positions
            n_done += len(next_positions)
        return positions

    def _window_at(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, "right")) - 1

    def _window(self, number: int) -> np.ndarray:
        """Return the positions of a window in random order; the last window asked for is kept."""
        if number != self._window_number:
            start, stop = self._starts[number : number + 2].tolist()
            # Not from 0: NumPy ignores zeros at the end, and [seed, epoch] permutes the tars.
            generator = np.random.default_rng([*self._key, number + 1])
            self._order = start + generator.permutation(stop - start)
            self._window_number = number
        return self._order

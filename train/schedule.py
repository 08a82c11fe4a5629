"""The learning rate: linear warm-up, then a cosine; by step or, as published, by epoch."""

from __future__ import annotations

import math

from cusa.train.config import Config
from cusa.train.length import schedule_span, warmup_span


def learning_rate(
    step: int,
    steps_per_epoch: int,
    config: Config,
) -> float:
    r"""Compute the learning rate of a step.

    The cosine is ``min_lr + (lr - min_lr) (1 + cos(pi t)) / 2`` (Loshchilov & Hutter, "SGDR", ICLR
    2017, equation 5). Let S be the steps of the schedule (``optim.schedule_steps`` or
    ``optim.schedule_epochs``, or else those of the run), W the warm-up steps among them
    (``optim.warmup_steps`` or ``optim.warmup_epochs``), and E the steps per epoch:

    - ``optim.schedule: step``: the warm-up is ``lr (s + 1) / W`` at step s, counted from 0; then
      ``t = (s - W) / (S - 1 - W)``, so that the last step has ``min_lr``.
    - ``optim.schedule: epoch``: the rate is constant within epoch e, counted from 0. The warm-up is
      ``lr (e + 1) / (W / E)``; then ``t = (e - W / E) / (S / E)``, so that the last epoch is still
      above ``min_lr``. This is timm's ``CosineLRScheduler`` with ``t_in_epochs`` and
      ``warmup_prefix``, stepped with the epoch's number before each epoch, as in ALBEF's code and
      the published trainer of CUSA (its retrieval.py). The published runs have no warm-up.

    Steps after the first S have ``min_lr``.

    Args:
        step: Steps done before this one.
        steps_per_epoch: Steps per epoch.
        config: The run's settings.
    """
    optim = config.optim
    time, warmup, duration = _times(step, steps_per_epoch, config)
    if time < warmup:
        warmup_rate = optim.lr * (time + 1) / warmup
        return min(optim.lr, warmup_rate)
    progress = min(1.0, (time - warmup) / duration)
    cosine = math.cos(math.pi * progress)
    above_min = (optim.lr - optim.min_lr) * (1 + cosine) / 2
    return optim.min_lr + above_min


def _times(
    step: int,
    steps_per_epoch: int,
    config: Config,
) -> tuple[int, float, float]:
    """Return the time of a step, and how long warm-up and cosine take; in steps or in epochs."""
    warmup = warmup_span(config)
    n_steps = schedule_span(config).in_steps(steps_per_epoch)
    if config.optim.schedule == "epoch":
        epoch = step // steps_per_epoch
        n_epochs = n_steps / steps_per_epoch
        return epoch, warmup.in_epochs(steps_per_epoch), n_epochs
    warmup_steps = warmup.in_steps(steps_per_epoch)
    cosine_steps = max(1, n_steps - 1 - warmup_steps)
    return step, warmup_steps, cosine_steps

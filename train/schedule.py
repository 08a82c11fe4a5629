"""The learning rate: linear warm-up, then a cosine; by step or, as published, by epoch."""

from __future__ import annotations

import math

from cusa.train.config import Config


def learning_rate(
    step: int,
    steps_per_epoch: int,
    config: Config,
) -> float:
    r"""Compute the learning rate of a step.

    The cosine is ``min_lr + (lr - min_lr) (1 + cos(pi t)) / 2`` (Loshchilov & Hutter, "SGDR", ICLR
    2017, equation 5). Let T be the number of epochs (``optim.schedule_epochs``, or else
    ``train.epochs``), W the warm-up epochs among them, and E the steps per epoch:

    - ``optim.schedule: step``: the warm-up is ``lr (s + 1) / (W E)`` at step s, counted from 0;
      then ``t = (s - W E) / (T E - 1 - W E)``, so that the last step has ``min_lr``.
    - ``optim.schedule: epoch``: the rate is constant within epoch e, counted from 0. The warm-up is
      ``lr (e + 1) / W``; then ``t = (e - W) / T``, so that the last epoch is still above
      ``min_lr``. This is timm's ``CosineLRScheduler`` with ``t_in_epochs`` and ``warmup_prefix``,
      stepped with the epoch's number before each epoch, as in ALBEF's code and the published
      trainer of CUSA (its retrieval.py). The published runs have no warm-up.

    Epochs after the first T have ``min_lr``.

    Args:
        step: Steps done before this one.
        steps_per_epoch: Steps per epoch.
        config: The run's settings.
    """
    optim = config.optim
    epochs = optim.schedule_epochs or config.train.epochs
    if optim.schedule == "epoch":
        now, warmup, length = step // steps_per_epoch, optim.warmup_epochs, float(epochs)
    else:
        now, warmup = step, round(optim.warmup_epochs * steps_per_epoch)
        length = max(1, epochs * steps_per_epoch - 1 - warmup)
    if now < warmup:
        return min(optim.lr, optim.lr * (now + 1) / warmup)
    cosine = math.cos(math.pi * min(1.0, (now - warmup) / length))
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + cosine) / 2

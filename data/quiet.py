"""Libraries that report on stderr while they load something, silenced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Above the level of errors, which are raised as well.
_NOTHING = 60


@contextmanager
def without_output(bars: ModuleType, log: ModuleType) -> Iterator[None]:
    """Hide a Hugging Face library's progress bars and log within a block.

    Args:
        bars: The module that switches its bars on and off.
        log: The module that sets the verbosity of its log.
    """
    shows_bars = bars.is_progress_bar_enabled()
    verbosity = log.get_verbosity()
    if shows_bars:
        bars.disable_progress_bar()
    log.set_verbosity(_NOTHING)
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if shows_bars:
            bars.enable_progress_bar()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the bars and the log of transformers within a block."""
    from transformers.utils import logging

    with without_output(logging, logging):
        yield

"""The log of a run as TensorBoard files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cusa.data.errors import SettingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from cusa.train.trainer import Trainer

FOLDER = "tensorboard"


class TensorBoardReporter:
    """Writes what a run logs to ``tensorboard/`` in its directory.

    Args:
        warn: Called once if the files cannot be written; training goes on without them.

    Raises:
        SettingError: If the tensorboard package is not installed.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SettingError(
                "--tensorboard needs the package tensorboard; pip install 'cusa[tensorboard]'",
                name="--tensorboard",
            ) from None
        self._writer_class = SummaryWriter
        self._warn = warn
        self._writer: SummaryWriter | None = None

    def started(self, trainer: Trainer) -> None:
        """Open the files; TensorBoard drops what a resumed run wrote after its checkpoint."""
        self._writer = self._writer_class(
            str(trainer.setup.run_dir / FOLDER), purge_step=trainer.progress.step + 1
        )

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Write the losses, temperatures, learning rate and speed of a step."""
        self._write("train", metrics)

    def validated(self, metrics: dict[str, Any]) -> None:
        """Write the recalls of the validation split, at the last step of the epoch."""
        self._write("val", metrics)

    def warned(self, text: str) -> None:
        """Ignore warnings, which are for the screen."""

    def _write(self, section: str, metrics: dict[str, Any]) -> None:
        if self._writer is None:
            return
        try:
            for name, value in metrics.items():
                if name not in ("kind", "step", "epoch", "best"):
                    self._writer.add_scalar(f"{section}/{name}", value, metrics["step"])
            self._writer.flush()
        except OSError as error:
            self._writer = None
            reason = error.strerror or error
            self._warn(f"the TensorBoard files could not be written ({reason}); they end here")

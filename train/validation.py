"""Validation, and saving the best student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import CusaError, RunError, Stopped
from cusa.train.encode_split import encode_split
from cusa.train.keeper import RunKeeper
from cusa.train.reporter import Reporter
from cusa.train.run_setup import RunSetup
from cusa.train.saving.run_progress import Progress
from cusa.train.sources import Sources

ValidationScores = Callable[[SplitEmbeddings], dict[str, float]]

_ADAPTER_BATCH = 256  # MLPs have room for more pairs than in training


@dataclass(frozen=True)
class Validation:
    """Validates a run; all processes must make every call.

    Attributes:
        setup: What the run trains with.
        keeper: Writes the run's files.
        progress: How far the run is.
        scores: Computes the scores, see ``validation_scores`` of
            :class:`cusa.train.trainer.Trainer`.
    """

    setup: RunSetup
    keeper: RunKeeper
    progress: Progress
    scores: ValidationScores

    def validate(self, check_stop: Callable[[], None], reporters: Sequence[Reporter]) -> None:
        """Validate the student, and save it if it is the best, its scores and a checkpoint.

        Without a validation split, every student counts as the best so far.

        Args:
            check_stop: Called after each batch if this process trains alone; may raise.
            reporters: They show the scores.

        Raises:
            Stopped: As ``check_stop`` does; a checkpoint is saved.
            CusaError: If an input cannot be read or the split cannot be scored.
        """
        embeddings = None
        val_sources = self.setup.data.val_sources
        if val_sources is not None:
            embeddings = self._encode(val_sources, check_stop)
        # Save the student first, since the checkpoint records whether it is the best.
        scores, is_best = self._scores_and_best(embeddings)
        progress = self.progress
        progress.validated(scores.get("rsum"), is_best)
        metrics: dict[str, Any] = {
            "kind": "val",
            "step": progress.step,
            "epoch": self.setup.length.epochs(progress.step),
            "best": is_best,
            **scores,
        }
        if scores:
            self.keeper.log(metrics)
        self.keeper.save_checkpoint(scores, is_validated=True)
        if scores:
            for reporter in reporters:
                reporter.validated(metrics)

    def _encode(self, sources: Sources, check_stop: Callable[[], None]) -> SplitEmbeddings:
        """Encode the validation split; if that is interrupted or fails, save a checkpoint."""
        setup = self.setup
        if setup.processes.size > 1:
            # Several processes cannot stop during validation, and a launcher may not wait.
            self.keeper.save_checkpoint()
        batch_size = setup.config.train.batch_size
        if not setup.towers.processors.read_files:
            batch_size = _ADAPTER_BATCH
        try:
            return encode_split(
                setup.step.student,
                sources,
                setup.processes.device,
                batch_size,
                setup.workers,
                setup.config.train.worker_start,
                setup.processes,
                check_stop,
            )
        except Stopped:
            self.keeper.save_checkpoint()
            raise
        except CusaError as error:
            self.keeper.save_checkpoint()
            raise self.keeper.resumable(error) from None

    def _scores_and_best(self, embeddings: SplitEmbeddings | None) -> tuple[dict[str, float], bool]:
        """Score the student, and save it if it is the best; the leading process decides."""
        progress = self.progress
        processes = self.setup.processes
        scores = {}
        is_best = embeddings is None
        with processes.all_or_none():
            if processes.leads and embeddings is not None:
                scores = self._scores_of(embeddings)
                best_rsum = progress.best_rsum
                is_best = best_rsum is None or scores["rsum"] > best_rsum
        if is_best and processes.leads:
            is_best = self.keeper.save_best(scores)
        return processes.everyones((scores, is_best))[0]

    def _scores_of(self, embeddings: SplitEmbeddings) -> dict[str, float]:
        try:
            return self.scores(embeddings)
        except CusaError as error:  # embeddings that are not finite
            moment = self.setup.length.moment(self.progress.step)
            raise RunError(
                f"{moment} cannot be validated: {error}; begin a new run with a lower optim.lr",
                path=self.setup.run_dir,
            ) from None

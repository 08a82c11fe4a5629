"""The training loop: steps, checkpoints, validation.

Stopped anywhere, it goes on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import CusaError, DataError, RunError, SettingError
from cusa.data.files import FolderLock
from cusa.data.store.reader import EmbeddingStore
from cusa.train.config import Config
from cusa.train.diagnosis import named_images, why_not_finite
from cusa.train.encode_split import encode_split
from cusa.train.keeper import RunKeeper
from cusa.train.loader import Batch, Loader, Pairs, Sources, on_device
from cusa.train.loss.cusa_loss import CUSALoss, LossTerms
from cusa.train.memory import enough_memory
from cusa.train.processes import Processes
from cusa.train.reporter import Reporter
from cusa.train.resume import refuse_fewer_epochs, restore_newest
from cusa.train.run_setup import set_up_run
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_dir import read_history
from cusa.train.saving.run_progress import Progress
from cusa.train.schedule import learning_rate
from cusa.train.step import Footprint, TrainStep
from cusa.train.training_state import TrainingState

ValidationScores = Callable[[SplitEmbeddings], dict[str, float]]

_ADAPTER_VALIDATION_BATCH = 256  # MLPs have room for more pairs than in training
_SMALLER_BATCHES = (
    "encode fewer pairs at a time, with the loss of the same batch: --micro-batch, or train on "
    "smaller batches: --batch-size"
)


class _Stopped(Exception):  # noqa: N818 - no error
    """A signal came while the validation split was being encoded."""


class _PaceStart(NamedTuple):
    """Where the samples per second of the next report are counted from."""

    seconds: float
    step: int


class Trainer:
    """One run: trains its student, and owns its directory.

    Args:
        config: The run's settings, with the names of teachers and encoders still as given.
        processes: This process and those that train with it; all of them take part in every call.
        workers: Processes that read batches, for each of these.
        run_dir: Directory of the run; must not exist unless resumed.
        resume: Go on from its newest checkpoint.
        validation_scores: Gives ``rsum``, by which the best epoch is chosen, and further figures of
            the validation split, in percent
            (:func:`cusa.eval.metrics.validation.validation_scores`).

    Attributes:
        setup: Store, settings, and what is trained on.
        model: Student and loss.
        data: What the student learns from and is validated on.
        state: What training changes.
        progress: How far the run is.
        notes: What the user should know of the data, and of how the run resumed.
        keeper: Writes the run's files.

    Raises:
        CusaError: If store, teachers, student or run directory do not fit; says what to do.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        workers: int,
        run_dir: Path,
        resume: bool,
        validation_scores: ValidationScores,
    ) -> None:
        self.setup = set_up_run(config, processes, workers, run_dir, resume)
        self.model = self.setup.model
        self.data = self.setup.data
        self.state = TrainingState(self.model.step, self.config, processes.device)
        self.progress = Progress()
        self.notes = [*self.setup.notes]
        if self.setup.resumed is not None:
            self._restore(self.setup.resumed.note)
        self.keeper = RunKeeper(self.setup, saved_step=self.progress.step)
        self.keeper.warn = self._warn
        self._validation_scores = validation_scores
        self._module: nn.Module = self.model.step
        self._reporters: Sequence[Reporter] = ()
        self._stop: Callable[[], int] = lambda: 0
        self._pace_start = _PaceStart(time.perf_counter(), self.progress.step)

    def _restore(self, note: str) -> None:
        """Go back to the newest checkpoint of the run that goes on."""
        self.progress, problems = restore_newest(
            self.run_dir,
            self.state,
            self.processes,
            self.steps_per_epoch,
        )
        refuse_fewer_epochs(self.config.train.epochs, self.progress, self.steps_per_epoch)
        history_note = read_history(self.run_dir).note
        for text in (note, history_note, *problems):
            if text:
                self.notes.append(text)

    # --- what a command line shows

    @property
    def config(self) -> Config:
        """The settings, resolved."""
        return self.setup.config

    @property
    def provenance(self) -> Provenance:
        """What is trained on."""
        return self.setup.provenance

    @property
    def store(self) -> EmbeddingStore:
        """The embedding store."""
        return self.setup.store

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        return self.setup.run_dir

    @property
    def processes(self) -> Processes:
        """This process and those that train with it."""
        return self.setup.processes

    @property
    def pairs(self) -> Pairs:
        """The trainable pairs."""
        return self.data.pairs

    @property
    def step(self) -> TrainStep:
        """Student and loss in one module."""
        return self.model.step

    @property
    def loss(self) -> CUSALoss:
        """The loss."""
        return self.model.loss

    @property
    def footprint(self) -> Footprint:
        """What training needs of the device's memory."""
        return self.model.footprint

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.data.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or patience has run out since the best one."""
        train = self.config.train
        if self.progress.epoch >= train.epochs:
            return True
        epochs_since_best = self.progress.epoch - self.progress.best_epoch
        return train.patience is not None and epochs_since_best >= train.patience

    def fit(
        self,
        reporters: Sequence[Reporter] = (),
        stop: Callable[[], int] = lambda: 0,
    ) -> int:
        """Train to the end.

        Args:
            reporters: Told what happens.
            stop: Called after each step: a signal's number if the run is to stop, 0 if not. It
                stops with a checkpoint.

        Returns:
            The number of the signal that stopped it, or 0.

        Raises:
            CusaError: If loss or gradient are not finite, an image cannot be read, another process
                works on this run, or the device's memory is too small; the last checkpoint stays.
        """
        if self.processes.leads:
            self._reporters = reporters
        self._stop = stop
        signal = self._fit()
        if signal == 0:
            lost = self.keeper.lost_at_the_end(self.progress)
            if lost:
                raise RunError(lost, path=self.run_dir)
        return signal

    def _fit(self) -> int:
        loader = Loader(
            self.data.pairs,
            self.data.order,
            self.setup.workers,
            pin=self.processes.device.type == "cuda",
            start_method=self.config.train.worker_start,
        )
        # The leading process alone takes the lock; the others learn of a failure by all_or_none.
        with contextlib.closing(loader), contextlib.ExitStack() as run_lock:
            with self.processes.all_or_none():
                if self.processes.leads:
                    run_lock.enter_context(FolderLock(self.run_dir))
            self._begin()
            while not self.finished:
                signal = self._train_epoch(loader) or self._validate()
                if signal:
                    return signal
        return 0

    def _begin(self) -> None:
        """See that all processes stand at the same step, and write what a run begins with."""
        positions = self.processes.everyones((self.progress.step, self.progress.epoch))
        if len(set(positions)) > 1:
            raise CusaError(
                f"not all processes read the same checkpoint; all machines must see {self.run_dir}"
            )
        # Only then: DDP gives all the leading process's weights, which would hide the difference.
        if self.processes.size > 1:
            self._module = DistributedDataParallel(self.model.step)
        if self.processes.leads:
            self.keeper.begin(self.progress)
        if self.setup.resumed is not None and self.setup.resumed.note:
            self.keeper.log(
                {
                    "kind": "epochs",
                    "step": self.progress.step,
                    "epoch": self.progress.epoch,
                    "epochs": self.config.train.epochs,
                    "note": self.setup.resumed.note,
                }
            )
        for reporter in self._reporters:
            reporter.started(self)

    # --- steps

    def _train_epoch(self, loader: Loader[Batch]) -> int:
        """Take the epoch's steps that are left; return the signal that stopped them, or 0."""
        self.data.order.epoch = self.progress.epoch
        self.data.order.first = self.progress.steps_into_epoch(self.steps_per_epoch)
        self.model.step.train()
        self._pace_start = _PaceStart(time.perf_counter(), self.progress.step)
        # Inputs that are encoded a few at a time go to the device a few at a time.
        whole_inputs = self.model.step.at_a_time is None
        batches = on_device(loader, self.processes.device, inputs=whole_inputs)
        not_finite = ""
        while True:
            batch, fault = _next(batches)
            signal = self._meet(fault, not_finite)
            if signal:
                return signal
            if batch is None:
                return 0
            not_finite = self._train_on(batch)

    def _meet(self, fault: str, not_finite: str) -> int:
        """Before each step: see that all processes can go on; save a checkpoint where one is due.

        Args:
            fault: Why this process has no next batch; empty if it has.
            not_finite: Why its last loss was not finite; empty if it was.

        Returns:
            The number of the signal that any of them got, or 0.
        """
        is_due = self.processes.leads and self.keeper.checkpoint_is_due(self.progress.step)
        # One exchange for all four: each costs a message to every process.
        any_fault, any_not_finite, signal, any_due = self.processes.most(
            [bool(fault), bool(not_finite), self._stop(), is_due]
        )
        # Without a checkpoint: it would go on to the same step, with the same loss.
        if any_not_finite:
            raise CusaError(
                not_finite
                or "another process has a loss that is not finite; its own message says why"
            )
        if any_fault or signal or any_due:
            self._save_checkpoint()
        if any_fault:
            problem = fault or "another process has no next batch; its own message says why"
            raise CusaError(self.keeper.with_resume_command(problem))
        return signal

    def _train_on(self, batch: Batch) -> str:
        """Take one step.

        Returns:
            What is wrong if its loss or gradient is not finite, else empty. Weights stay as they
            were then.
        """
        rate = learning_rate(self.progress.step, self.steps_per_epoch, self.config)
        step_number = self.progress.step + 1
        try:
            with enough_memory(_SMALLER_BATCHES, "train.batch_size"):
                terms: LossTerms = self._module(batch)
                # By all processes, or the others would wait for this one.
                is_finite = self.state.descend(terms.total, rate)
        except SettingError:  # of memory: no image is at fault
            raise
        except ValueError as error:
            images = named_images(batch.image_ids, self.data.image_ids)
            raise DataError(f"step {step_number}: {error}; {images}") from None
        if not is_finite:
            return why_not_finite(self.step, batch, terms, self.data.image_ids, step_number)

        self.progress.step = step_number
        is_logged = step_number % self.config.train.log_every == 0 or step_number == 1
        if self.processes.leads and is_logged:
            self._report_step(terms, rate)
        return ""

    def _report_step(self, terms: LossTerms, rate: float) -> None:
        now = time.perf_counter()
        n_steps = self.progress.step - self._pace_start.step
        n_pairs = n_steps * self.data.pairs_per_step * self.processes.size
        seconds = now - self._pace_start.seconds
        self._pace_start = _PaceStart(now, self.progress.step)

        # Each item() waits for the GPU: only here, where a step is logged.
        values = terms._asdict()
        metrics: dict[str, Any] = {
            "kind": "train",
            "step": self.progress.step,
            "epoch": self.progress.step / self.steps_per_epoch,
            "loss": terms.total.item(),
            **{term: values[term].item() for term in self.config.loss.terms},
            **self.loss.temperatures(),
            "lr": rate,
            "samples_per_s": n_pairs / seconds,
        }
        self.keeper.log(metrics)
        for reporter in self._reporters:
            reporter.stepped(metrics)

    # --- validation

    def _validate(self) -> int:
        """Measure the validation split, if there is one, and end the epoch.

        Returns:
            The number of the signal that stopped it, or 0.
        """
        if self.data.val_sources is None:
            self._end_epoch(None)
            return 0
        is_alone = self.processes.size == 1
        if not is_alone:
            # They cannot part in the middle of it, and a launcher that stops them waits briefly.
            self._save_checkpoint()

        def check() -> None:
            if is_alone and self._stop():
                raise _Stopped

        try:
            embeddings = self._encode(self.data.val_sources, check)
        except _Stopped:
            self._save_checkpoint()
            return self._stop()
        except CusaError as error:
            self._save_checkpoint()
            message = self.keeper.with_resume_command(str(error))
            raise type(error)(message, path=error.path, name=error.name) from None
        self._end_epoch(embeddings)
        return 0

    def _encode(
        self,
        sources: Sources,
        check: Callable[[], None],
    ) -> SplitEmbeddings:
        batch_size = self.config.train.batch_size
        if self.model.processors is None:
            batch_size = _ADAPTER_VALIDATION_BATCH
        return encode_split(
            self.model.student,
            sources,
            self.processes.device,
            batch_size=batch_size,
            workers=self.setup.workers,
            start_method=self.config.train.worker_start,
            processes=self.processes,
            check=check,
        )

    def _end_epoch(self, embeddings: SplitEmbeddings | None) -> None:
        """Save what an epoch leaves: its student if it is the best one, the scores, a checkpoint.

        Args:
            embeddings: Of the validation split; without one, the last epoch is the best.
        """
        epoch = self.progress.epoch + 1
        # The student first: the checkpoint that follows says whether it is the best.
        scores, is_best = self._scores_and_best(embeddings, epoch)
        self.progress.epoch = epoch
        if is_best:
            self.progress.best_epoch = epoch
            self.progress.best_rsum = scores.get("rsum", -math.inf)

        metrics: dict[str, Any] = {
            "kind": "val",
            "step": self.progress.step,
            "epoch": epoch,
            "best": is_best,
            **scores,
        }
        if scores:
            self.keeper.log(metrics)
        self._save_checkpoint(scores, epoch_ended=True)
        if scores:
            for reporter in self._reporters:
                reporter.validated(metrics)

    def _scores_and_best(
        self,
        embeddings: SplitEmbeddings | None,
        epoch: int,
    ) -> tuple[dict[str, float], bool]:
        """Score an epoch, save its student if it is the best; the leading process decides."""
        scores: dict[str, float] = {}
        is_best = embeddings is None
        with self.processes.all_or_none():
            if self.processes.leads and embeddings is not None:
                scores = self._scores(embeddings, epoch)
                is_best = scores["rsum"] > self.progress.best_rsum
        if is_best and self.processes.leads:
            is_best = self.keeper.save_best(epoch, self.progress.step, scores)
        return self.processes.everyones((scores, is_best))[0]

    def _scores(self, embeddings: SplitEmbeddings, epoch: int) -> dict[str, float]:
        try:
            return self._validation_scores(embeddings)
        except CusaError as error:  # not finite
            remedy = "begin a new run with a lower optim.lr"
            message = f"epoch {epoch} cannot be validated: {error}; {remedy}"
            raise RunError(message, path=self.run_dir) from None

    def _save_checkpoint(
        self,
        scores: Mapping[str, float] | None = None,
        epoch_ended: bool = False,
    ) -> None:
        self.keeper.save_checkpoint(self.state, self.progress, scores or {}, epoch_ended)

    def _warn(self, text: str) -> None:
        for reporter in self._reporters:
            reporter.warned(text)


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, str]:
    """Return the next batch, if there is one, and why it could not be read, if it could not."""
    try:
        return next(batches, None), ""
    except CusaError as error:
        return None, str(error)

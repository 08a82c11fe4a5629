"""The training loop: steps, checkpoints, validation; stopped anywhere, it goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import CusaError, DataError, RunError, SettingError
from cusa.data.files import FolderLock
from cusa.data.store.reader import EmbeddingStore
from cusa.train.assemble import make_student, resolve
from cusa.train.config import Config
from cusa.train.diagnosis import named_images, why_not_finite
from cusa.train.encode_split import encode_split
from cusa.train.keeper import RunKeeper
from cusa.train.loader import Batch, Loader, Sources, on_device
from cusa.train.loss.cusa_loss import CUSALoss, LossTerms
from cusa.train.memory import enough_memory
from cusa.train.processes import Processes
from cusa.train.reporter import Reporter
from cusa.train.resume import BegunRun, begun_run, refuse_fewer_epochs, restore_newest
from cusa.train.saving.run_dir import Checkpoints, begun, read_history
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import BEST_FOLDER, Origin
from cusa.train.schedule import learning_rate
from cusa.train.step import Footprint, TrainStep, prepare
from cusa.train.training_data import data_notes, open_training_data
from cusa.train.training_state import TrainingState

_SMALLER_BATCHES = (
    "encode fewer pairs at a time, with the loss of the same batch: --micro-batch, or train on "
    "smaller batches: --batch-size"
)
_SMALLER_STUDENT = "train a smaller one: student.hidden_dim, student.embed_dim, --student"


class _Stopped(Exception):  # noqa: N818 - no error
    """A signal came while the validation split was being encoded."""


class Trainer:
    """One run: owns the run directory, the student, the loss and the optimizer.

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
        config: The settings, resolved.
        provenance: What is trained on.
        data: What it learns from and is validated on.
        pairs: The trainable pairs.
        order: Their order.
        progress: How far the run is.
        footprint: What it needs of the device's memory.
        notes: What the user should know of how it resumed.
        keeper: What writes its files.

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
        validation_scores: Callable[[SplitEmbeddings], dict[str, float]],
    ) -> None:
        if processes.leads and run_dir.exists() and not resume and any(run_dir.iterdir()):
            remedy = "pass --resume to go on, or another --run-dir"
            raise RunError(f"run directory {run_dir} exists; {remedy}", path=run_dir)
        self.processes, self.workers, self.run_dir = processes, workers, run_dir
        self.store = EmbeddingStore(config.data.embeddings)
        self.store.verify_index()
        self.config, self.provenance = resolve(config, self.store)
        self._validation_scores = validation_scores
        self._begun: BegunRun | None = None
        if resume and begun(run_dir):  # before the student is made: it may be another one
            self._begun = begun_run(run_dir, self.config, self.provenance, self.store)
            self.config = self._begun.config
        torch.manual_seed(self.config.train.seed)
        with enough_memory(_SMALLER_STUDENT, "student.hidden_dim"):
            self._make_student()
            inputs = self.store, self.config, self.provenance, self.processors, processes
            self.data = open_training_data(*inputs)
            self.pairs, self.order = self.data.pairs, self.data.order
            self.loss = CUSALoss(self.config.loss, gather=self.config.train.gather)
            step = TrainStep(self.student, self.loss, self.config, processes.device)
            self.step = step.to(processes.device)
            self.footprint = self._prepare()
        if processes.rank:  # other dropout masks on other pairs
            sequence = np.random.SeedSequence([self.config.train.seed, processes.rank])
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        self._state = TrainingState(self.step, self.config, processes.device)
        self.progress = Progress()
        self.notes = data_notes(self.data, config, self.store)
        if self._begun:
            length = self.steps_per_epoch
            self.progress, problems = restore_newest(run_dir, self._state, processes, length)
            refuse_fewer_epochs(self.config.train.epochs, self.progress, length)
            notes = (self._begun.note, read_history(run_dir).note, *problems)
            self.notes += [note for note in notes if note]
        self.keeper = RunKeeper(run_dir, processes, self._origin, saved_step=self.progress.step)
        self.keeper.warn = self._warn
        self._module: nn.Module = self.step
        self._reporters: Sequence[Reporter] = ()
        self._stop: Callable[[], int] = lambda: 0
        self._timed_from = time.perf_counter(), self.progress.step

    def _make_student(self) -> None:
        has_checkpoint = self._begun is not None and bool(Checkpoints(self.run_dir).paths())
        begun_in = self.run_dir / BEST_FOLDER if has_checkpoint else None
        initial = make_student(self.config, self.provenance, begun_in)
        self.student, self.processors, beginning = (
            initial.student,
            initial.processors,
            initial.beginning,
        )
        if self._begun:
            beginning = self._begun.same_beginning(beginning)
        self.provenance = replace(self.provenance, beginning=beginning)
        # Its configuration is written when a run begins.
        self._backbone = initial.backbone if begun_in is None else None

    def _prepare(self) -> Footprint:
        most = self.data.pairs_per_step
        at_a_time = min(self.config.train.pairs_at_a_time or most, most)
        device = self.processes.device
        two, four = (self.pairs[numbers].to(device) for numbers in ([0, 1], [0, 1, 0, 1]))
        return prepare(self.step, two, four, at_a_time)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.order)

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or no better one has come for as long as the settings allow."""
        p, patience = self.progress, self.config.train.patience
        return p.epoch >= self.config.train.epochs or (
            patience is not None and p.epoch - p.best_epoch >= patience
        )

    def fit(self, reporters: Sequence[Reporter] = (), stop: Callable[[], int] = lambda: 0) -> int:
        """Train to the end.

        Args:
            reporters: Told what happens.
            stop: Called after each step: a signal's number if the run is to stop, 0 if not. It stops with a checkpoint.

        Returns:
            The number of the signal that stopped it, or 0.

        Raises:
            CusaError: If loss or gradient are not finite, an image cannot be read, another process works on this run,
                or the device's memory is too small; the last checkpoint stays.
        """
        self._reporters, self._stop = reporters if self.processes.leads else (), stop
        signal = self._fit()
        if not signal and (lost := self.keeper.lost_at_the_end(self.progress)):
            raise RunError(lost, path=self.run_dir)
        return signal

    def _fit(self) -> int:
        pin = self.processes.device.type == "cuda"
        loader = Loader(self.pairs, self.order, self.workers, pin, self.config.train.worker_start)
        with contextlib.closing(loader), contextlib.ExitStack() as held:
            with self.processes.all_or_none():
                if self.processes.leads:
                    held.enter_context(FolderLock(self.run_dir))
            self._begin()
            while not self.finished:
                if signal := self._train_epoch(loader) or self._validate():
                    return signal
        return 0

    def _begin(self) -> None:
        """See that all processes stand at the same step, and write what a run begins with."""
        if len(set(self.processes.everyones((self.progress.step, self.progress.epoch)))) > 1:
            raise CusaError(
                f"not all processes read the same checkpoint; all machines must see {self.run_dir}"
            )
        if self.processes.size > 1:
            self._module = DistributedDataParallel(self.step)
        if self.processes.leads:
            if self._backbone is not None and self.processors is not None:
                self._backbone.config.save_pretrained(self.run_dir / BEST_FOLDER)
                self.processors.save(self.run_dir / BEST_FOLDER)
            self.keeper.begin(self.config, self.provenance, self.progress)
            if self._begun and self._begun.note:
                line = {"kind": "epochs", "step": self.progress.step, "epoch": self.progress.epoch}
                line |= {"epochs": self.config.train.epochs, "note": self._begun.note}
                self.keeper.log(line)
        for reporter in self._reporters:
            reporter.started(self)

    # --- steps

    def _train_epoch(self, loader: Loader[Batch]) -> int:
        """The steps of the epoch that are left; the number of the signal that stopped them, or 0."""
        self.order.epoch = self.progress.epoch
        self.order.first = self.progress.step - self.progress.epoch * self.steps_per_epoch
        self.step.train()
        self._timed_from = time.perf_counter(), self.progress.step
        batches = on_device(loader, self.processes.device, inputs=self.step.at_a_time is None)
        lost = ""
        while True:
            batch, fault = _next(batches)
            if signal := self._meet(fault, lost):
                return signal
            if batch is None:
                return 0
            lost = self._train_on(batch)

    def _meet(self, fault: str, lost: str) -> int:
        """Before each step: see that all processes can go on, and save a checkpoint where one is due.

        Args:
            fault: Why this process has no next batch; empty if it has.
            lost: Why its last loss was not finite.

        Returns:
            The number of the signal that any of them got, or 0.
        """
        every = self.config.train.checkpoint_steps, self.config.train.checkpoint_minutes
        due = self.processes.leads and self.keeper.checkpoint_due(self.progress.step, *every)
        any_fault, any_lost, signal, any_due = self.processes.most(
            [bool(fault), bool(lost), self._stop(), due]
        )
        if any_lost:
            raise CusaError(
                lost or "another process has a loss that is not finite; its own message says why"
            )
        if any_fault or signal or any_due:
            self._save_checkpoint()
        if any_fault:
            raise CusaError(
                self.keeper.going_on(
                    fault or "another process has no next batch; its own message says why",
                )
            )
        return signal

    def _train_on(self, batch: Batch) -> str:
        """One step; what is wrong if its loss or gradient is not finite. Weights stay as they were then."""
        lr = learning_rate(self.progress.step, self.steps_per_epoch, self.config)
        try:
            with enough_memory(_SMALLER_BATCHES, "train.batch_size"):
                terms: LossTerms = self._module(batch)
                # By all processes, or the others would wait for this one.
                finite = self._state.descend(terms.total, lr)
        except SettingError:
            raise
        except ValueError as error:
            images = named_images(batch.image_ids, self.data.image_ids)
            raise DataError(f"step {self.progress.step + 1}: {error}; {images}") from None
        if not finite:
            return why_not_finite(
                self.step, batch, terms, self.data.image_ids, self.progress.step + 1
            )
        self.progress.step += 1
        if self.processes.leads and (
            self.progress.step % self.config.train.log_every == 0 or self.progress.step == 1
        ):
            self._report_step(terms, lr)
        return ""

    def _report_step(self, terms: LossTerms, lr: float) -> None:
        (since, first), now = self._timed_from, time.perf_counter()
        pairs = (self.progress.step - first) * self.data.pairs_per_step * self.processes.size
        self._timed_from = now, self.progress.step
        metrics: dict[str, Any] = {
            "kind": "train",
            "step": self.progress.step,
            "epoch": self.progress.step / self.steps_per_epoch,
            "loss": terms.total.item(),
            **{t: getattr(terms, t).item() for t in self.config.loss.terms},
            **self.loss.temperatures(),
            "lr": lr,
            "samples_per_s": pairs / (now - since),
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
        several = self.processes.size > 1
        if several:  # they cannot part in the middle of it, and a launcher that stops them does not wait for long
            self._save_checkpoint()

        def check() -> None:
            if not several and self._stop():
                raise _Stopped

        try:
            embeddings = self._encode(self.data.val_sources, check)
        except _Stopped:
            self._save_checkpoint()
            return self._stop()
        except CusaError as error:
            self._save_checkpoint()
            raise type(error)(
                self.keeper.going_on(str(error)),
                path=error.path,
                name=error.name,
            ) from None
        self._end_epoch(embeddings)
        return 0

    def _encode(self, sources: Sources, check: Callable[[], None]) -> SplitEmbeddings:
        return encode_split(
            self.student,
            sources,
            self.processes.device,
            batch_size=256 if self.processors is None else self.config.train.batch_size,
            workers=self.workers,
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
        scores: dict[str, float] = {}
        is_best = embeddings is None
        with self.processes.all_or_none():
            if self.processes.leads and embeddings is not None:
                scores = self._scores(embeddings, epoch)
                is_best = scores["rsum"] > self.progress.best_rsum
        # From here on it is the leading process that says how it went.
        is_best = is_best and self.processes.leads
        if is_best:
            is_best = self.keeper.save_best(self.student, epoch, self.progress.step, scores)
        scores, is_best = self.processes.everyones((scores, is_best))[0]
        self.progress.epoch = epoch
        if is_best:
            self.progress.best_epoch, self.progress.best_rsum = epoch, scores.get("rsum", -math.inf)
        metrics = {"kind": "val", "step": self.progress.step, "epoch": epoch, "best": is_best}
        metrics |= scores
        if scores:
            self.keeper.log(metrics)
        self._save_checkpoint(scores, epoch_ended=True)
        for reporter in self._reporters if scores else ():
            reporter.validated(metrics)

    def _scores(self, embeddings: SplitEmbeddings, epoch: int) -> dict[str, float]:
        try:
            return self._validation_scores(embeddings)
        except CusaError as error:  # not finite
            remedy = "begin a new run with a lower optim.lr"
            raise RunError(
                f"epoch {epoch} cannot be validated: {error}; {remedy}",
                path=self.run_dir,
            ) from None

    # --- what is kept

    def _origin(self, epoch: int, step: int, scores: Mapping[str, float]) -> Origin:
        size = self.processes.size
        return Origin(self.config, self.provenance, epoch, step, scores, len(self.pairs), size)

    def _save_checkpoint(
        self,
        scores: Mapping[str, float] | None = None,
        epoch_ended: bool = False,
    ) -> None:
        self.keeper.save_checkpoint(
            self._state,
            self.progress,
            self.steps_per_epoch,
            scores,
            epoch_ended,
        )

    def _warn(self, text: str) -> None:
        for reporter in self._reporters:
            reporter.warned(text)


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, str]:
    """The next batch, if there is one; why it could not be read, if it could not."""
    try:
        return next(batches, None), ""
    except CusaError as error:
        return None, str(error)

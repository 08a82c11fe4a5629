"""The training loop: steps, checkpoints, validation; stopped anywhere, it goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cusa.data.errors import CusaError, DataError, RunError, SettingError
from cusa.data.files import FolderLock
from cusa.data.store import EmbeddingStore
from cusa.train.batches import Batch, EpochOrder, Loader, Sources, on_device, pairs_per_step
from cusa.train.card import write_card
from cusa.train.config import Config, differing
from cusa.train.diagnosis import named_images, why_not_finite
from cusa.train.encode import SplitEmbeddings, encode_split, validation_scores
from cusa.train.losses import CUSALoss, LossTerms
from cusa.train.processes import Processes
from cusa.train.progress import Progress
from cusa.train.run_dir import Checkpoints, MetricsLog, begun, load_run, read_history, save_run
from cusa.train.saved import BEST_FOLDER, WEIGHTS_FILE, Origin, save_student
from cusa.train.schedule import learning_rate
from cusa.train.setup import make_student, resolve, student_sources, training_pairs, validation_sources
from cusa.train.state import TrainingState
from cusa.train.step import TrainStep, prepare
from cusa.train.tensors import prefixed, under


class Reporter(Protocol):
    """What a command line shows of a run."""

    def started(self, trainer: Trainer) -> None:
        """Called once everything is set up."""
        ...

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Called after every step that is logged."""
        ...

    def validated(self, metrics: dict[str, Any]) -> None:
        """Called after every epoch."""
        ...

    def warned(self, text: str) -> None:
        """Called when something went wrong that training survives."""
        ...


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

    Attributes:
        config: The settings, resolved.
        provenance: What is trained on.
        pairs: The trainable pairs.
        pairs_per_step: Pairs per optimizer step of one process: as the settings have it, or all that there are.
        progress: How far the run is.
        footprint: What it needs of the device's memory.
        notes: What the user should know of how it resumed.
        saved_step: Step of the newest checkpoint; 0 if there is none.

    Raises:
        CusaError: If store, teachers, student or run directory do not fit; says what to do.
    """

    def __init__(self, config: Config, processes: Processes, workers: int, run_dir: Path, resume: bool) -> None:
        if processes.leads and run_dir.exists() and not resume and any(run_dir.iterdir()):
            raise CusaError(f"run directory {run_dir} exists; pass --resume to go on, or another --run-dir")
        self.processes, self.workers, self.run_dir = processes, workers, run_dir
        self.store = EmbeddingStore(config.data.embeddings)
        self.store.verify_index()
        self.config, self.provenance = resolve(config, self.store)
        self._checkpoints, self._log = Checkpoints(run_dir), MetricsLog(run_dir)
        resume = resume and begun(run_dir)
        if resume:  # before the student is made: it may be another one
            self._refuse_another_run()
        begun_in = run_dir / BEST_FOLDER if resume and self._checkpoints.paths() else None
        seed, device = config.train.seed, processes.device
        torch.manual_seed(seed)
        self.student, self.processors, backbone = make_student(self.config, self.provenance, begun_in)
        names = tuple(t.name for t in self.provenance.encoders.values())
        train = student_sources(self.store, config.data.train_split, self.config, names, self.processors)
        self.val_sources = validation_sources(self.store, self.config, names, self.processors)
        self.pairs = training_pairs(self.store, train, self.config, self.provenance)
        self._image_ids = train.split.image_ids
        self.pairs_per_step = pairs_per_step(len(self.pairs), config.train.pairs_per_step, processes.size)
        self.order = EpochOrder(len(self.pairs), self.pairs_per_step, seed, processes.rank, processes.size)
        self.loss = CUSALoss(config.loss, gather=config.train.gather)
        if self.pairs_in_loss < 2:
            remedy = "train on more" if len(self.pairs) == 1 else "pass --batch-size with 2 or more"
            message = f"a batch of one pair ({len(self.pairs):,} can be trained on) has nothing to tell it from"
            raise SettingError(f"{message}; {remedy}", name="train.batch_size")
        self.step = TrainStep(self.student, self.loss, self.config, device).to(device)
        at_a_time = min(config.train.pairs_at_a_time or self.pairs_per_step, self.pairs_per_step)
        two, four = (self.pairs[numbers].to(device) for numbers in ([0, 1], [0, 1, 0, 1]))
        self.footprint = prepare(self.step, two, four, at_a_time)
        if processes.rank:  # other dropout masks on other pairs
            torch.manual_seed(int(np.random.SeedSequence([seed, processes.rank]).generate_state(1, np.uint64)[0]))
        self._state = TrainingState(self.step, config, device)
        self.progress = Progress()
        self.notes = self._notes(config)
        if resume:
            self.notes += [note for note in [read_history(run_dir).note] if note]
            self._resume()
        self.saved_step, self._saved_at = self.progress.step, time.monotonic()
        self._backbone = backbone if begun_in is None else None
        self._module: nn.Module = self.step
        self._reporters: Sequence[Reporter] = ()
        self._stop: Callable[[], int] = lambda: 0
        self._timed_from = time.perf_counter(), self.progress.step
        self._lost_best = 0  # epoch

    def _notes(self, given: Config) -> list[str]:
        """What differs from what is usual, or from the settings as given."""
        notes = []
        if self.val_sources is None:
            name = given.data.val_split
            reason = "data.val_split is null" if name is None else f"{self.store.path} has no split {name!r}"
            notes.append(f"no validation ({reason}): best/ holds the student of the last epoch")
        if self.pairs_per_step < given.train.pairs_per_step:
            pairs = f"{len(self.pairs):,} pairs can be trained on, fewer than the batch that the settings ask for"
            notes.append(f"{pairs}: steps of {self.pairs_per_step:,} in each process (--batch-size)")
        return notes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.order)

    @property
    def pairs_in_loss(self) -> int:
        """Pairs whose similarities one loss is made of."""
        return self.pairs_per_step * (self.processes.size if self.config.train.gather else 1)

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or no better one has come for as long as the settings allow."""
        p, patience = self.progress, self.config.train.patience
        return p.epoch >= self.config.train.epochs or (patience is not None and p.epoch - p.best_epoch >= patience)

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
        try:
            signal = self._fit()
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            # Raised wherever the main thread was, in the middle of a step perhaps: there is nothing to save. If it was
            # just taking a batch from the process, all that it sees is that their connection ended.
            problem = "a process that reads batches was killed, for want of memory perhaps (fewer --workers)"
            raise RunError(self._going_on(problem), path=self.run_dir) from None
        if not signal and (lost := self._lost_at_the_end()):
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
            raise CusaError(f"not all processes read the same checkpoint; all machines must see {self.run_dir}")
        if self.processes.size > 1:
            self._module = DistributedDataParallel(self.step)
        if self.processes.leads:
            self._checkpoints.tidy(self.progress.step)
            self._log.trim(self.progress.step, self.progress.epoch)
            if self._backbone is not None and self.processors is not None:
                self._backbone.config.save_pretrained(self.run_dir / BEST_FOLDER)
                self.processors.save(self.run_dir / BEST_FOLDER)
            save_run(self.run_dir, self.config, self.provenance)
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
        due = self.processes.leads and self._checkpoint_due()
        any_fault, any_lost, signal, any_due = self.processes.most([bool(fault), bool(lost), self._stop(), due])
        if any_lost:
            raise CusaError(lost or "another process has a loss that is not finite; its own message says why")
        if any_fault or signal or any_due:
            self._save_checkpoint()
        if any_fault:
            raise CusaError(self._going_on(fault or "another process has no next batch; its own message says why"))
        return signal

    def _checkpoint_due(self) -> bool:
        step, t = self.progress.step, self.config.train
        if step == self.saved_step:
            return False
        late = t.checkpoint_minutes is not None and time.monotonic() - self._saved_at >= 60 * t.checkpoint_minutes
        return late or (t.checkpoint_steps is not None and step % t.checkpoint_steps == 0)

    def _train_on(self, batch: Batch) -> str:
        """One step; what is wrong if its loss or gradient is not finite. Weights stay as they were then."""
        lr = learning_rate(self.progress.step, self.steps_per_epoch, self.config)
        try:
            terms: LossTerms = self._module(batch)
            finite = self._state.descend(terms.total, lr)  # by all processes, or the others would wait for this one
        except ValueError as error:
            images = named_images(batch.image_ids, self._image_ids)
            raise DataError(f"step {self.progress.step + 1}: {error}; {images}") from None
        except torch.OutOfMemoryError:
            raise CusaError(
                "not enough memory on the GPU; encode fewer pairs at a time, with the loss of the same batch: "
                "--micro-batch, or train on smaller ones: --batch-size"
            ) from None
        if not finite:
            return why_not_finite(self.step, batch, terms, self._image_ids, self.progress.step + 1)
        self.progress.step += 1
        if self.processes.leads and (self.progress.step % self.config.train.log_every == 0 or self.progress.step == 1):
            self._report_step(terms, lr)
        return ""

    def _report_step(self, terms: LossTerms, lr: float) -> None:
        (since, first), now = self._timed_from, time.perf_counter()
        pairs = (self.progress.step - first) * self.pairs_per_step * self.processes.size
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
        self._write(metrics)
        for reporter in self._reporters:
            reporter.stepped(metrics)

    # --- validation

    def _validate(self) -> int:
        """Measure the validation split, if there is one, and end the epoch.

        Returns:
            The number of the signal that stopped it, or 0.
        """
        if self.val_sources is None:
            self._end_epoch(None)
            return 0
        several = self.processes.size > 1
        if several:  # they cannot part in the middle of it, and a launcher that stops them does not wait for long
            self._save_checkpoint()

        def check() -> None:
            if not several and self._stop():
                raise _Stopped

        try:
            embeddings = self._encode(self.val_sources, check)
        except _Stopped:
            self._save_checkpoint()
            return self._stop()
        except CusaError as error:
            self._save_checkpoint()
            raise type(error)(self._going_on(str(error)), path=error.path, name=error.name) from None
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
        is_best = is_best and self.processes.leads and self._save_best(epoch, scores)
        scores, is_best = self.processes.everyones((scores, is_best))[0]
        self.progress.epoch = epoch
        if is_best:
            self.progress.best_epoch, self.progress.best_rsum = epoch, scores.get("rsum", -math.inf)
        metrics = {"kind": "val", "step": self.progress.step, "epoch": epoch, "best": is_best, **scores}
        if scores:
            self._write(metrics)
        self._save_checkpoint(scores, epoch_ended=True)
        for reporter in self._reporters if scores else ():
            reporter.validated(metrics)

    def _scores(self, embeddings: SplitEmbeddings, epoch: int) -> dict[str, float]:
        try:
            return validation_scores(embeddings)
        except CusaError as error:  # not finite
            remedy = "begin a new run with a lower optim.lr"
            raise RunError(f"epoch {epoch} cannot be validated: {error}; {remedy}", path=self.run_dir) from None

    def _save_best(self, epoch: int, scores: dict[str, float]) -> bool:
        folder, origin = self.run_dir / BEST_FOLDER, self._origin(epoch, scores)
        try:
            save_student(folder / WEIGHTS_FILE, self.student, origin)
            write_card(folder, origin)
        except OSError as error:
            self._warn(f"epoch {epoch} is the best so far and could not be saved ({_reason(error)}); training goes on")
            self._lost_best = epoch
            return False
        self._lost_best = 0
        return True

    def _lost_at_the_end(self) -> str:
        """What the last epoch leaves that could not be written; empty if nothing."""
        if self.saved_step < self.progress.step:
            return self._going_on("training is done, but its end could not be saved; make room")
        if self._lost_best:
            return (
                f"training is done, but the student of epoch {self._lost_best}, the best one, could not be saved; "
                f"{self.run_dir / BEST_FOLDER} holds that of epoch {self.progress.best_epoch or 'none'}"
            )
        return ""

    # --- checkpoints

    def _origin(self, epoch: int, scores: dict[str, float]) -> Origin:
        size = self.processes.size
        return Origin(self.config, self.provenance, epoch, self.progress.step, scores, len(self.pairs), size)

    def _save_checkpoint(self, scores: dict[str, float] | None = None, epoch_ended: bool = False) -> None:
        """Save all that the run goes on from; if that fails, the last one stays, and so does the run.

        Args:
            scores: Of the validation split, with these weights.
            epoch_ended: Save again where the epoch's last step is saved already.
        """
        random_states = self.processes.everyones(self._state.random_states())
        if self.processes.leads and (self.progress.step != self.saved_step or epoch_ended):
            tensors = self._state.tensors()
            for rank, states in enumerate(random_states):
                tensors |= prefixed(f"rng.{rank}", states)
            meta = {
                "origin": self._origin(math.ceil(self.progress.step / self.steps_per_epoch), scores or {}).plain(),
                "progress": self.progress.plain(),
                "scaler": self._state.scaler(),
            }
            try:
                self._checkpoints.save(self.progress.step, tensors, meta)
                self.saved_step = self.progress.step
            except OSError as error:
                self._warn(
                    f"the checkpoint of step {self.progress.step} could not be written ({_reason(error)}); that of "
                    f"step {self.saved_step} stays"
                )
        self.saved_step, self._saved_at = self.processes.everyones(self.saved_step)[0], time.monotonic()

    def _refuse_another_run(self) -> None:
        before, provenance = load_run(self.run_dir)
        if fields := differing(before, self.config):
            raise CusaError(f"--resume: settings differ from those of {self.run_dir}: {'; '.join(fields)}")
        if fields := provenance.differing(self.store, self.provenance):
            raise CusaError(f"{self.store.path} is not the store that {self.run_dir} began with: {'; '.join(fields)}")

    def _resume(self) -> None:
        newest, problems = self._checkpoints.newest()
        self.notes += problems
        if newest is None:
            return
        tensors, meta = newest
        size = Origin.from_plain(meta["origin"]).processes
        if size != self.processes.size:
            raise CusaError(
                f"{self.run_dir} was begun by {size} processes and cannot go on with {self.processes.size}: its "
                "batches would be others; start as many (torchrun --nproc-per-node)"
            )
        try:
            self._state.restore(tensors, under(f"rng.{self.processes.rank}", tensors), meta["scaler"])
        except RunError as error:
            raise RunError(f"{self.run_dir}: {error}", path=self.run_dir) from None
        self.progress = Progress.from_plain(meta["progress"])
        if not 0 <= self.progress.step - self.progress.epoch * self.steps_per_epoch <= self.steps_per_epoch:
            at = f"step {self.progress.step:,} is not within epoch {self.progress.epoch + 1}"
            raise RunError(f"the checkpoint of {self.run_dir} is damaged ({at})", path=self.run_dir)

    # --- what is written beside

    def _write(self, metrics: dict[str, Any]) -> None:
        if not self.processes.leads:
            return
        try:
            self._log.append(metrics)
        except OSError as error:
            self._warn(f"the log could not be written ({_reason(error)}); its lines are kept and tried again")

    def _going_on(self, problem: str) -> str:
        return (
            f"{problem} (the run is kept up to step {self.saved_step:,}; go on with: cusa-train --resume --run-dir "
            f"{self.run_dir})"
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


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

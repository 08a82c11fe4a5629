"""The training loop: steps, checkpoints, validation.

A run may be stopped anywhere; when it is resumed, it continues as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cusa.data.errors import DataError, RunError, SettingError
from cusa.data.files import FolderLock
from cusa.data.worker_pool import WorkerPool
from cusa.train.agreement import agree_to_go_on
from cusa.train.config import Config
from cusa.train.diagnosis import named_images, why_not_finite
from cusa.train.keeper import RunKeeper
from cusa.train.loader import Batch, next_batch, on_device
from cusa.train.loss.cusa_loss import LossTerms
from cusa.train.memory import enough_memory
from cusa.train.processes import Processes
from cusa.train.reporter import Reporter, report_end
from cusa.train.resume import BegunRun, restore_newest
from cusa.train.run_setup import set_up_run
from cusa.train.saving.run_dir import read_history
from cusa.train.saving.run_progress import Progress
from cusa.train.schedule import learning_rate
from cusa.train.step_figures import StepFigures
from cusa.train.training_state import TrainingState
from cusa.train.validation import Validation, ValidationScores

_SMALLER_BATCHES = (
    "encode fewer pairs at a time, with the loss of the same batch: --micro-batch, or train on "
    "smaller batches: --batch-size"
)


class Trainer:
    """Trains the student of one run, and owns the run's directory.

    Args:
        config: The run's settings, with the names of teachers and encoders as given.
        processes: This process and those that train with it; all of them must make every call.
        workers: Processes that read batches, for each training process.
        run_dir: Directory of the run; without ``resume``, it must be empty or not exist.
        resume: Whether to resume the run in that directory, if it holds one.
        validation_scores: Computes ``rsum``, by which the best student is chosen, and further
            scores of the validation split, in percent
            (:func:`cusa.eval.metrics.validation.validation_scores`).

    Attributes:
        setup: The store, settings, student, loss and data of the run.
        state: What training changes.
        progress: How far the run is.
        notes: What the user should know about the data, and about how the run was resumed.
        keeper: Writes the run's files.

    Raises:
        CusaError: If the store, teachers, student or run directory do not fit; the message says
            what to do.
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
        setup = set_up_run(config, processes, workers, run_dir, resume)
        self.setup = setup
        self.state = TrainingState(setup.step, setup.config, processes.device)
        self.progress = Progress.start()
        self.notes = [*setup.notes]
        if setup.resumed is not None:
            self._restore(setup.resumed)
        # Shared with the keeper, which is made before the reporters of a fit are known.
        self._reporters: list[Reporter] = []
        self.keeper = RunKeeper(setup, self.state, self.progress, self._reporters)
        self._figures = StepFigures(setup, self.progress)
        self._validation = Validation(setup, self.keeper, self.progress, validation_scores)
        self._module: nn.Module = setup.step
        self._check_stop: Callable[[], None] = lambda: None

    def _restore(self, resumed: BegunRun) -> None:
        """Restore the newest checkpoint of a resumed run."""
        setup = self.setup
        run_dir = setup.run_dir
        self.progress, problems = restore_newest(run_dir, self.state, setup.processes, setup.length)
        length_note = resumed.note(setup.length)
        history_note = read_history(run_dir).note
        self.notes += filter(None, [length_note, history_note, *problems])

    @property
    def finished(self) -> bool:
        """Return whether the last step is validated, or patience has run out since the best one."""
        progress = self.progress
        patience = self.setup.config.train.patience
        if progress.validated_step >= self.setup.length.total:
            return True
        if patience is None:
            return False
        return progress.validations_since_best >= patience

    def fit(
        self,
        reporters: Sequence[Reporter] = (),
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Train to the end.

        Args:
            reporters: They show what happens; used in the leading process only.
            check_stop: Called after each step; raises :class:`Stopped` if the run is to stop.

        Raises:
            Stopped: If any of the processes is to stop; a checkpoint is saved.
            CusaError: If a loss or gradient is not finite, an image cannot be read, another process
                trains this run, or the device's memory is too small; the last checkpoint stays.
        """
        setup = self.setup
        processes = setup.processes
        if processes.leads:
            self._reporters[:] = reporters
        self._check_stop = check_stop
        with ExitStack() as contexts:
            pool = contexts.enter_context(closing(self._worker_pool()))
            # Only the leading process takes the lock; all_or_none tells the others if it fails.
            with processes.all_or_none():
                if processes.leads:
                    contexts.enter_context(FolderLock(setup.run_dir))
            contexts.enter_context(report_end(self._reporters))
            self._begin()
            batches = contexts.enter_context(closing(self._batches(pool)))
            while not self.finished:
                next_validation = setup.length.next_validation(self.progress)
                self._train_to(next_validation, batches)
                self._validate()
        lost = self.keeper.lost_at_the_end()
        if lost:
            raise RunError(lost, path=setup.run_dir)

    def _worker_pool(self) -> WorkerPool[Batch]:
        setup = self.setup
        return WorkerPool(
            setup.data.pairs,
            setup.workers,
            setup.config.train.worker_start,
            pin=setup.processes.device.type == "cuda",
        )

    def _begin(self) -> None:
        """Check that all processes are at the same step, and write the run's first files."""
        setup = self.setup
        processes = setup.processes
        self._require_same_step()
        # Only now: DDP copies the leading process's weights to all, which would hide a difference.
        if processes.size > 1:
            self._module = DistributedDataParallel(setup.step)
        if processes.leads:
            self.keeper.begin()
        if setup.resumed is not None:
            change = setup.resumed.change(self.progress, setup.length)
            if change:
                self.keeper.log(change)
        for reporter in self._reporters:
            reporter.started(self)

    def _require_same_step(self) -> None:
        """Refuse processes that have not all restored the same checkpoint."""
        run_dir = self.setup.run_dir
        own_steps = (self.progress.step, self.progress.validated_step)
        steps_of_all = self.setup.processes.everyones(own_steps)
        if len(set(steps_of_all)) > 1:
            raise RunError(
                "the processes have read different checkpoints; make the same "
                f"{run_dir} visible to all of them",
                path=run_dir,
            )

    def _batches(self, pool: WorkerPool[Batch]) -> Generator[Batch, None, None]:
        """Yield the batches of all remaining steps, epoch by epoch, on the device."""
        data = self.setup.data
        device = self.setup.processes.device
        # Inputs that are encoded a few at a time are also moved to the device a few at a time.
        with_inputs = self.setup.step.at_a_time is None
        epoch, first_step = divmod(self.progress.step, data.steps_per_epoch)
        while True:
            with closing(data.batches(pool, epoch, first_step)) as read_batches:
                yield from on_device(read_batches, device, with_inputs)
            epoch += 1
            first_step = 0

    def _train_to(self, last_step: int, batches: Iterator[Batch]) -> None:
        """Take steps up to one that is to be validated."""
        processes = self.setup.processes
        self.setup.step.train()
        self._figures.start_clock()
        not_finite = ""
        while self.progress.step < last_step:
            batch, fault = next_batch(batches)
            agree_to_go_on(processes, self.keeper, self._check_stop, fault, not_finite)
            assert batch is not None  # without one there is a fault
            not_finite = self._train_on(batch)
        agree_to_go_on(processes, self.keeper, self._check_stop, None, not_finite)

    def _train_on(self, batch: Batch) -> str:
        """Take one step.

        Returns:
            What is wrong, if the loss or gradient is not finite; the weights then stay as they
            were. Empty otherwise.
        """
        setup = self.setup
        image_ids = setup.data.image_ids
        steps_done = self.progress.step
        step_number = steps_done + 1
        rate = learning_rate(steps_done, setup.data.steps_per_epoch, setup.config)
        try:
            with enough_memory(_SMALLER_BATCHES, "train.batch_size"):
                terms: LossTerms = self._module(batch)
                # In every process, even if the loss is not finite: DDP waits for all of them.
                is_finite = self.state.descend(terms.total, rate)
        except SettingError:  # not enough memory: no image is at fault
            raise
        except ValueError as error:
            images = named_images(batch.image_ids, image_ids)
            raise DataError(f"step {step_number}: {error}; {images}") from None
        if not is_finite:
            return why_not_finite(setup.step, batch, terms, image_ids, step_number)

        self.progress.step = step_number
        is_due = step_number % setup.config.train.log_every == 0
        is_logged = is_due or step_number == 1
        if is_logged and setup.processes.leads:
            metrics = self._figures.measure(terms, rate)
            self._report(metrics)
        return ""

    def _report(self, metrics: dict[str, Any]) -> None:
        """Log the figures of a step, and show them."""
        self.keeper.log(metrics)
        for reporter in self._reporters:
            reporter.stepped(metrics)

    def _validate(self) -> None:
        """Measure the validation split, if there is one."""
        self._validation.validate(self._check_stop, self._reporters)

"""Setting up a run before its first step: store, settings, student, loss and data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cusa.data.errors import RunError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.assemble import MadeStudent, make_student, resolve
from cusa.train.config import Config
from cusa.train.length import RunLength, refuse_endless_warmup
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.features import FeatureDims
from cusa.train.memory import enough_memory
from cusa.train.processes import Processes
from cusa.train.resume import BegunRun, begun_run
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_dir import Checkpoints, begun
from cusa.train.saving.student_folder import BEST_FOLDER
from cusa.train.step import Footprint, TrainStep, prepare_step
from cusa.train.stores import Store, open_store
from cusa.train.student import Student
from cusa.train.towers.tower import Towers
from cusa.train.training_data import TrainingData, data_notes, open_training_data
from cusa.train.validation_store import open_validation_store

_SMALLER_STUDENT = (
    "train a smaller student: student.hidden_dim, student.embed_dim or another --student"
)


@dataclass(frozen=True)
class RunSetup:
    """What a run trains with.

    Attributes:
        run_dir: Its directory.
        processes: This process and those that train with it.
        workers: Processes that read batches, for each training process.
        store: The store, or the set of tars.
        config: The settings, with the names of teachers and encoders filled in.
        provenance: What the run is trained on.
        resumed: The run that is resumed; ``None`` for a new run.
        step: Student and loss in one module: from a batch to its loss.
        towers: The student's towers.
        footprint: What training needs of the device's memory.
        data: What the student learns from and is validated on.
        length: The steps of the run, and those that it validates after.
        notes: What the user should know of the data.
    """

    run_dir: Path
    processes: Processes
    workers: int
    store: Store
    config: Config
    provenance: Provenance
    resumed: BegunRun | None
    step: TrainStep
    towers: Towers
    footprint: Footprint
    data: TrainingData
    length: RunLength
    notes: list[str]


def set_up_run(
    config: Config,
    processes: Processes,
    workers: int,
    run_dir: Path,
    resume: bool,
) -> RunSetup:
    """Open or make everything that a run trains with; a checkpoint's weights are loaded later.

    Args:
        config: The run's settings, with the names of teachers and encoders as given.
        processes: This process and those that train with it.
        workers: Processes that read batches, for each training process.
        run_dir: Directory of the run; without ``resume``, it must be empty or not exist.
        resume: Whether to resume the run in that directory, if it holds one.

    Raises:
        CusaError: If the store, teachers, student or run directory do not fit; the message says
            what to do.
    """
    if processes.leads and not resume:
        _refuse_existing(run_dir)
    store = _open_training_store(config)
    val_store = open_validation_store(config.data)
    resolved, provenance = resolve(config, store, val_store)
    resumed = None
    if resume and begun(run_dir):  # checked before a possibly different student is loaded
        resumed = begun_run(run_dir, resolved, provenance, store)
        resolved = resumed.config

    # Seed before anything is drawn: first the heads' weights, later dropout masks.
    torch.manual_seed(resolved.train.seed)
    with enough_memory(_SMALLER_STUDENT, "student.hidden_dim"):
        begun_in = _student_folder(run_dir, resumed)
        initial = make_student(resolved, provenance, begun_in)
        provenance = _with_beginning(provenance, initial, resumed)
        processors = initial.towers.processors
        data = open_training_data(
            store, val_store or store, resolved, provenance, processors, processes
        )
        _refuse_useless_steps(resolved, resumed, data.steps_per_epoch)
        step = _make_step(resolved, initial.student, processes, provenance)
        footprint = _footprint(step, data)
    _seed_masks(resolved, processes)
    return RunSetup(
        run_dir=run_dir,
        processes=processes,
        workers=workers,
        store=store,
        config=resolved,
        provenance=provenance,
        resumed=resumed,
        step=step,
        towers=initial.towers,
        footprint=footprint,
        data=data,
        length=RunLength(resolved, data.steps_per_epoch),
        notes=data_notes(data, config, store),
    )


def _open_training_store(config: Config) -> Store:
    store = open_store(config.data.embeddings, config.data.image_root)
    if isinstance(store, EmbeddingStore):
        store.verify_index()
    return store


def _refuse_useless_steps(
    config: Config,
    resumed: BegunRun | None,
    steps_per_epoch: int,
) -> None:
    """Refuse steps that would change nothing, now that it is known how many an epoch has."""
    refuse_endless_warmup(config, steps_per_epoch)
    if resumed is not None:
        resumed.refuse_idle_steps(steps_per_epoch)


def _make_step(
    config: Config,
    student: Student,
    processes: Processes,
    provenance: Provenance,
) -> TrainStep:
    feature_dims = None
    if config.loss.rule == "features":
        teachers = provenance.teachers
        feature_dims = FeatureDims(
            student=student.embed_dim,
            image=sum(teacher.settings.dim for teacher in teachers.image),
            text=sum(teacher.settings.dim for teacher in teachers.text),
        )
    loss = CUSALoss(config.loss, gather=config.train.gather, feature_dims=feature_dims)
    step = TrainStep(student, loss, config, processes.device)
    return step.to(processes.device)


def _seed_masks(config: Config, processes: Processes) -> None:
    """Give each process dropout masks of its own, since it has pairs of its own."""
    if processes.rank == 0:
        return
    entropy = [config.train.seed, processes.rank]
    [seed] = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    torch.manual_seed(int(seed))


def _refuse_existing(run_dir: Path) -> None:
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        message = f"run directory {run_dir} is a file; pass another --run-dir"
        raise RunError(message, path=run_dir)
    if any(run_dir.iterdir()):
        raise RunError(
            f"run directory {run_dir} exists and is not empty; pass --resume to go on, or another "
            "--run-dir",
            path=run_dir,
        )


def _student_folder(run_dir: Path, resumed: BegunRun | None) -> Path | None:
    """Return the folder of the student's configuration if the run has a checkpoint."""
    if resumed is None or not Checkpoints(run_dir).paths():
        return None
    return run_dir / BEST_FOLDER


def _with_beginning(
    provenance: Provenance,
    initial: MadeStudent,
    resumed: BegunRun | None,
) -> Provenance:
    """Add the trained student that the run began with, if any."""
    beginning = initial.beginning
    if resumed is not None:
        beginning = resumed.same_beginning(beginning)
    return replace(provenance, beginning=beginning)


def _footprint(step: TrainStep, data: TrainingData) -> Footprint:
    """Freeze the parameters that get no gradient, and measure the memory of a step."""
    device = next(step.parameters()).device
    at_a_time = data.pairs_per_step
    if step.at_a_time is not None:
        at_a_time = min(step.at_a_time, data.pairs_per_step)
    two_pairs = data.sample([0, 1]).to(device)
    # The same pairs twice: the difference is what two more pairs need.
    four_pairs = data.sample([0, 1, 0, 1]).to(device)
    return prepare_step(step, two_pairs, four_pairs, at_a_time)

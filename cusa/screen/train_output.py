"""The output of ``cusa-train`` before and after a run: its set-up and its outcome."""

from __future__ import annotations

from rich.console import Console

from cusa.screen.console import counted, print_plain
from cusa.train.length import run_span
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.trainer import Trainer


def print_setup(screen: Console, trainer: Trainer) -> None:
    """Print the data, the student, the loss and the settings of a run."""
    setup_lines = _data_lines(trainer) + _model_lines(trainer) + _run_lines(trainer)
    for note in trainer.notes:
        setup_lines.append(f"note      {note}")
    print_plain("\n".join(setup_lines), screen)


def print_outcome(screen: Console, trainer: Trainer) -> None:
    """Print the best validation, and where the student is saved."""
    setup = trainer.setup
    progress = trainer.progress
    best_moment = setup.length.moment(progress.best_step)
    if setup.data.val_sources is None:
        outcome = f"last {best_moment}: no validation split"
    else:
        outcome = f"best {best_moment}: val RSUM {progress.best_rsum:.1f}"
    if progress.step < setup.length.total:
        outcome += f", stopped early after {setup.length.moment(progress.step)}"
    print_plain(outcome, screen)
    print_plain(f"run: {setup.run_dir}", screen)
    print_plain(f"student: {setup.run_dir / 'best'}", screen)


def _data_lines(trainer: Trainer) -> list[str]:
    setup = trainer.setup
    provenance = setup.provenance
    pairs = setup.data.pairs
    split = setup.config.data.train_split
    data_lines = [
        f"data      {setup.store.dataset}: {len(pairs):,} pairs of split {split!r}, "
        f"{pairs.n_left_out:,} left out"
    ]
    validation = provenance.validation
    if validation is not None:
        val_store = setup.config.data.val_embeddings
        data_lines.append(
            f"val       {validation.dataset}: split {validation.split!r} of {val_store}"
        )
    for kind, teachers in provenance.teachers.by_kind().items():
        for teacher in teachers:
            data_lines.append(_rows_line(f"{kind} teacher", teacher))
    for modality, encoder in provenance.encoders.items():
        data_lines.append(_rows_line(f"{modality} encoder", encoder))
    return data_lines


def _rows_line(role: str, model: StoredTeacher) -> str:
    return f"rows      {role}: {model.name} ({model.settings.model_id})"


def _model_lines(trainer: Trainer) -> list[str]:
    setup = trainer.setup
    n_parameters = 0
    n_trained = 0
    for parameter in setup.step.parameters():
        n_parameters += parameter.numel()
        if parameter.requires_grad:
            n_trained += parameter.numel()

    loss_config = setup.config.loss
    batch_size = setup.data.pairs_in_loss
    terms = ", ".join(loss_config.term_titles)
    if loss_config.only_modality is not None:
        taught_terms = " and ".join(loss_config.terms_by_modality)
        terms += f" ({taught_terms} with soft labels of {loss_config.only_modality}s alone)"
    effective_weights = loss_config.effective_weights(batch_size).values()
    weighted = zip(loss_config.term_titles, effective_weights, strict=True)
    weights = ", ".join(f"{title} {weight:g}" for title, weight in weighted)

    footprint = setup.footprint
    total_size = _size(footprint.state + footprint.activations)
    return [
        f"student   {setup.config.student.title}, {n_parameters:,} parameters, "
        f"{n_trained:,} trained",
        f"loss      {terms}; weights relative to InfoNCE at batch {batch_size}: {weights}",
        f"memory    about {total_size} of each device: "
        f"{_size(footprint.state)} of weights, gradients and AdamW, "
        f"{_size(footprint.activations)} of activations",
    ]


def _run_lines(trainer: Trainer) -> list[str]:
    setup = trainer.setup
    processes = setup.processes
    train_config = setup.config.train
    device = processes.device.type
    if processes.size > 1:
        device += f", {processes.size} processes"
    run_lines = [
        f"run       {setup.run_dir}, {_run_length(trainer)}, "
        f"{device}, {train_config.precision}, seed {train_config.seed}"
    ]
    if trainer.progress.step:
        run_lines.append(f"resumed   after {_steps_done(trainer)}")
    return run_lines


def _run_length(trainer: Trainer) -> str:
    """Describe how long a run is, and how often it validates if not after each epoch."""
    length = trainer.setup.length
    train_config = length.config.train
    epoch_length = counted(length.steps_per_epoch, "step")
    description = f"{run_span(length.config)}"
    if train_config.steps is None:
        description += f" of {epoch_length}"
    else:
        description += f", {length.epochs(length.total):.3g} epochs of {epoch_length}"
    if train_config.validate_every is not None:
        description += f", validated every {counted(length.between_validations, 'step')}"
    return description


def _steps_done(trainer: Trainer) -> str:
    """Describe how far a run is, after its last complete epoch if it counts epochs."""
    length = trainer.setup.length
    progress = trainer.progress
    if length.config.train.counts_steps:
        description = f"step {progress.step:,}"
        if trainer.finished:
            description += ": nothing is left to train"
        return description
    epoch = f"epoch {length.epochs(progress.validated_step)}"
    if trainer.finished:
        return f"{epoch}, its last one: nothing is left to train"
    return f"{epoch}, step {progress.step - progress.validated_step:,} of the next"


def _size(n_bytes: int) -> str:
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.1f} MB"

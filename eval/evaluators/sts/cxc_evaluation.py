"""A model on Crisscrossed Captions: which of its tasks it can answer, and how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cusa.data.embeddings import Head
from cusa.data.errors import CusaError, DataError
from cusa.eval.evaluators.named_errors import named_in_errors
from cusa.eval.evaluators.splits import EvaluatedSplit, SplitFinder
from cusa.eval.evaluators.sts.cxc import CxcTask, cxc_correlation
from cusa.eval.evaluators.sts.measure import cosine
from cusa.eval.evaluators.sts.results import CxcKind, CxcResults, CxcScores
from cusa.eval.models.embedding_providers import Source
from cusa.eval.models.evaluated_models import EvaluatedModel


@dataclass(frozen=True)
class JudgedSplit:
    """The tasks of CxC that a model can answer, and the split of what they judge.

    Attributes:
        tasks: The tasks by kind.
        split: The split; ``None`` where there is no task.
        notes: What its user should know.
    """

    tasks: Mapping[CxcKind, CxcTask]
    split: EvaluatedSplit | None
    notes: tuple[str, ...]


def find_judged_split(
    model: EvaluatedModel,
    tasks: Mapping[CxcKind, CxcTask],
    splits: SplitFinder,
    folder: Path,
    skip_absent: bool,
) -> JudgedSplit:
    """Find the tasks that a model can answer, with the split that has what they judge.

    Args:
        model: The model; it embeds texts.
        tasks: The tasks by kind.
        splits: Finds its split.
        folder: Where the tasks were found.
        skip_absent: Whether they are left out, with a note, where the split lacks what they judge.

    Raises:
        CusaError: If it does, and they may not be left out.
    """
    answerable, notes = _answerable(model, tasks)
    if not answerable:
        return JudgedSplit({}, None, tuple(notes))
    try:
        split = splits.find(model.run_dir)
        for task in answerable.values():
            _check_has_what_is_judged(split, task)
    except CusaError as error:
        if not skip_absent:
            raise DataError(
                f"CxC in {folder}: {error}; or pass a folder without its csv files", path=folder
            ) from None
        notes.append(f"no CxC for {model.title}: {error}")
        return JudgedSplit({}, None, tuple(notes))
    return JudgedSplit(answerable, split, tuple(notes))


def _answerable(
    model: EvaluatedModel, tasks: Mapping[CxcKind, CxcTask]
) -> tuple[Mapping[CxcKind, CxcTask], list[str]]:
    """Leave out the tasks of images for a model that embeds none, with a note."""
    answerable = dict(tasks)
    of_images = [kind for kind in tasks if kind != "sts"]
    if "image" in model.source.modalities or not of_images:
        return answerable, []
    for kind in of_images:
        del answerable[kind]
    unable = " and no ".join(of_images)
    return answerable, [f"no {unable} of CxC for {model.title}: it embeds no images"]


def measure_cxc(source: Source, judged: JudgedSplit, seed: int) -> dict[CxcKind, CxcResults]:
    """Measure a model on the tasks that it can answer.

    Args:
        source: The model.
        judged: The tasks and the split.
        seed: Seed of the samples.

    Raises:
        CusaError: If an input cannot be read, or a correlation is not defined.
    """
    results: dict[CxcKind, CxcResults] = {}
    for kind, task in judged.tasks.items():
        if judged.split is None:
            continue
        first = _embed_judged(source, task.first, judged.split)
        second = _embed_judged(source, task.second, judged.split)
        heads: dict[Head, CxcScores] = {}
        with named_in_errors(f"{source.name}, CxC {kind}"):
            for head in first:
                similarities = cosine(first[head], second[head])
                heads[head] = cxc_correlation(similarities, task.gold, task.first, seed)
        results[kind] = {"heads": heads}
    return results


def _check_has_what_is_judged(split: EvaluatedSplit, task: CxcTask) -> None:
    """Refuse a split that lacks what CxC judges; says how many and which is the first."""
    for ids in (task.first, task.second):
        row_of_id = _row_by_id(ids, split)
        missing = [item for item in _distinct(ids) if item not in row_of_id]
        if missing:
            modality = "captions" if isinstance(ids[0], int) else "images"
            raise DataError(
                f"CxC judges {len(missing)} {modality} that {split.dataset} {split.view.name} "
                f"lacks, {missing[0]} the first; it needs COCO's test split under COCO's ids "
                "(Karpathy's json)",
                name=str(missing[0]),
            )


def _row_by_id(ids: Sequence[int | str], split: EvaluatedSplit) -> dict[str, int]:
    """Map ids to the split's rows: those of captions are numbers here, those of images texts."""
    ids_of_split = split.view.caption_ids if isinstance(ids[0], int) else split.view.image_ids
    row_of_id: dict[str, int] = {}
    for row in range(len(ids_of_split)):
        row_of_id[ids_of_split[row]] = row
    return row_of_id


def _distinct(ids: Sequence[int | str]) -> list[str]:
    return list(dict.fromkeys(map(str, ids)))


def _embed_judged(
    source: Source, ids: Sequence[int | str], split: EvaluatedSplit
) -> dict[Head, np.ndarray]:
    """Embed CxC's captions or images, each once; rows in the order of the ids."""
    row_of_id = _row_by_id(ids, split)
    distinct = _distinct(ids)
    rows = list(map(row_of_id.__getitem__, distinct))
    view = split.view
    if isinstance(ids[0], int):
        embedded = source.texts(distinct, [view.captions[row] for row in rows])
    else:
        paths = [split.image_root / view.image_paths[row] for row in rows]
        embedded = source.images(distinct, paths)
    position_of_id = dict(zip(distinct, range(len(distinct)), strict=True))
    positions = list(map(position_of_id.__getitem__, map(str, ids)))
    return {head: embeddings[positions] for head, embeddings in embedded.items()}

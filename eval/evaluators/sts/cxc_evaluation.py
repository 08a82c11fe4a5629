"""Measurement of a model on the tasks of Crisscrossed Captions that it can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cusa.data.embeddings import Head
from cusa.data.errors import CusaError, DataError
from cusa.eval.evaluators.protocol import named_in_errors
from cusa.eval.evaluators.splits import EvaluatedSplit, SplitFinder
from cusa.eval.evaluators.sts.cxc import CxcTask, cxc_correlation
from cusa.eval.evaluators.sts.measure import cosine
from cusa.eval.evaluators.sts.results import CxcKind, CxcResults, CxcScores
from cusa.eval.models.embedding_providers import EmbeddingProvider
from cusa.eval.models.evaluated_models import EvaluatedModel


@dataclass(frozen=True)
class CxcData:
    """The tasks of CxC that were found.

    Attributes:
        tasks: The tasks by kind.
        folder: The folder they were found in.
        splits: Finds each model's split, which has the judged captions and images.
        skip_absent: Whether to leave the tasks out, with a note, if the split lacks judged items.
    """

    tasks: Mapping[CxcKind, CxcTask]
    folder: Path
    splits: SplitFinder
    skip_absent: bool


def measure_cxc(
    model: EvaluatedModel,
    data: CxcData,
    seed: int,
) -> tuple[dict[CxcKind, CxcResults], list[str]]:
    """Measure a model on the tasks it can answer; return results by kind, and remarks.

    Args:
        model: A model that embeds texts.
        data: The tasks.
        seed: Seed of the samples.

    Raises:
        CusaError: If the split lacks judged items, an input cannot be read, or no correlation is
            defined.
    """
    tasks, notes = dict(data.tasks), []
    image_kinds = tasks.keys() - {"sts"}
    if image_kinds and "image" not in model.provider.modalities:
        unable = " and no ".join(filter(image_kinds.__contains__, tasks))
        notes.append(f"no {unable} of CxC for {model.title}: it embeds no images")
        for kind in image_kinds:
            del tasks[kind]
    if not tasks:
        return {}, notes
    try:
        split = data.splits.find(model.run_dir)
        for task in tasks.values():
            _check_has_judged_items(split, task)
    except CusaError as error:
        if not data.skip_absent:
            raise DataError(
                f"CxC in {data.folder}: {error}, or pass a folder without its csv files",
                path=data.folder,
            ) from None
        return {}, [*notes, f"no CxC for {model.title}: {error}"]
    results: dict[CxcKind, CxcResults] = {}
    for kind, task in tasks.items():
        results[kind] = _measure_task(model.provider, task, split, seed)
    return results, notes


def _measure_task(
    provider: EmbeddingProvider,
    task: CxcTask,
    split: EvaluatedSplit,
    seed: int,
) -> CxcResults:
    first = _embed_judged(provider, task.first, split)
    second = _embed_judged(provider, task.second, split)
    heads: dict[Head, CxcScores] = {}
    with named_in_errors(f"{provider.name}, CxC {task.kind}"):
        for head in first:
            similarities = cosine(first[head], second[head])
            heads[head] = cxc_correlation(similarities, task.gold, task.first, seed)
    return {"heads": heads}


def _check_has_judged_items(split: EvaluatedSplit, task: CxcTask) -> None:
    """Refuse a split that lacks judged items; the message says how many, and names the first."""
    for ids in (task.first, task.second):
        row_of_id = _row_by_id(ids, split)
        missing = [item for item in _distinct(ids) if item not in row_of_id]
        if missing:
            modality = "captions" if isinstance(ids[0], int) else "images"
            raise DataError(
                f"CxC judges {len(missing)} {modality} that {split.dataset} {split.view.name} "
                f"lacks, first {missing[0]}; use COCO's test split under COCO's ids (Karpathy's "
                "json)",
                name=str(missing[0]),
            )


def _row_by_id(
    ids: Sequence[int | str],
    split: EvaluatedSplit,
) -> dict[str, int]:
    """Map the ids of the split's captions, if CxC's ids are ``int``, or of its images to rows."""
    split_ids = split.view.caption_ids if isinstance(ids[0], int) else split.view.image_ids
    return dict(zip(split_ids, range(len(split_ids)), strict=True))


def _distinct(ids: Sequence[int | str]) -> list[str]:
    return list(dict.fromkeys(map(str, ids)))


def _embed_judged(
    provider: EmbeddingProvider,
    ids: Sequence[int | str],
    split: EvaluatedSplit,
) -> dict[Head, np.ndarray]:
    """Embed CxC's captions or images, each once, and return the rows in the order of the ids."""
    view, distinct = split.view, _distinct(ids)
    split_rows = list(map(_row_by_id(ids, split).__getitem__, distinct))
    if isinstance(ids[0], int):
        embedded = provider.texts(distinct, list(map(view.captions.__getitem__, split_rows)))
    else:
        image_paths = [split.image_root / view.image_paths[row] for row in split_rows]
        embedded = provider.images(distinct, image_paths)
    position_of_id = dict(zip(distinct, range(len(distinct)), strict=True))
    positions = list(map(position_of_id.__getitem__, map(str, ids)))
    return {head: embeddings[positions] for head, embeddings in embedded.items()}

"""What an evaluation is asked for, and the data sets that it finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cusa.data.errors import CusaError
from cusa.eval.evaluators.images.data import (
    FOLDER,
    IMAGE_SETS,
    ImageSet,
    find_image_sets,
    load_image_set,
)
from cusa.eval.evaluators.sts.cxc import find_cxc
from cusa.eval.evaluators.sts.data import NoStsDataError, StsTask, find_sts_tasks
from cusa.eval.queries import Suite
from cusa.eval.splits import DataRequest
from cusa.eval.suites import Measure

EmbeddingFile = tuple[Path, Path | None]  # rows, and their ids if these are in a file of their own


@dataclass(frozen=True)
class Plan:
    """What to measure, and how; the fields are the options of ``cusa-eval``.

    Attributes:
        suites: The suites.
        skip_absent: Whether a suite without data is left out, and said so, instead of refused.
        models: Models by name.
        files: Another model's image and text embeddings, if given.
        name: That model's name; ``None``: the files'.
        data: On what retrieval is measured.
        image_sets: ``NAME=FOLDER`` or ``FOLDER``; empty: all below the data root.
        sts: Folder of STS sets; ``None``: ``sts`` in the data root.
        measure: Scoring.
        pmrp: Folder of COCO's plausible matches, if given.
        device: ``"cpu"`` or ``"cuda"``.
        checkpoint: Of runs.
        batch_size: Items at a time.
        workers: Readers of inputs, if said.
        readers: Readers of inputs that are not stored, if not said.
        out: Folder of the report, if said.
        latex: Whether to write tables.tex.
        gallery: Queries per task shown.
    """

    suites: tuple[Suite, ...]
    skip_absent: bool
    models: tuple[str, ...]
    files: tuple[EmbeddingFile | None, EmbeddingFile | None]
    name: str | None
    data: DataRequest
    image_sets: tuple[str, ...]
    sts: Path | None
    measure: Measure
    pmrp: Path | None
    device: str
    checkpoint: str
    batch_size: int
    workers: int | None
    readers: int
    out: Path | None
    latex: bool
    gallery: int


def asked_image_sets(plan: Plan, notes: list[str]) -> list[ImageSet]:
    """The image sets that are asked for, or all that there are.

    Args:
        plan: What is asked for.
        notes: Told what is absent, if that is allowed.

    Raises:
        CusaError: If there are none, one is malformed, or two have one name.
    """
    root = plan.data.data_root
    there = find_image_sets(root)
    wanted: list[tuple[str, Path]] = []
    for text in plan.image_sets:
        name, equals, rest = text.partition("=")
        folder = Path(rest)
        if not equals or Path(text).is_dir():
            name, folder = (
                (text, there.get(text, root / text)) if text in IMAGE_SETS else (FOLDER, Path(text))
            )
        if name not in (*IMAGE_SETS, FOLDER):
            raise CusaError(
                f"--data {text}: unknown image set {name!r}; legal: {', '.join(IMAGE_SETS)}, or a FOLDER"
            )
        wanted.append((name, folder))
    wanted = wanted or list(there.items())
    if not wanted:
        what = f"no image sets below {root}/ (known: {', '.join(IMAGE_SETS)})"
        if not plan.skip_absent:
            raise CusaError(f"{what}; put them there, or pass --data NAME=FOLDER")
        notes.append(what)
    sets: dict[str, ImageSet] = {}
    for name, place in wanted:
        found = load_image_set(name, place, plan.measure.allow_partial)
        if found.name in sets:
            raise CusaError(
                f"two image sets are named {found.name!r}; pass each once, or rename a folder"
            )
        if name == FOLDER and found.name in IMAGE_SETS:
            raise CusaError(
                f"--data {place}: a folder per class under the name of a published set; pass {found.name}={place} if "
                "it is that one, or rename the folder"
            )
        sets[found.name] = found
    return list(sets.values())


def asked_sts_tasks(plan: Plan, notes: list[str]) -> list[StsTask]:
    """The tasks that there are; none, with a note, where there is CxC alone.

    Args:
        plan: What is asked for.
        notes: Told what is absent, if that is allowed.

    Raises:
        CusaError: If there is no task, or one is malformed or not complete.
    """
    folder = sts_folder(plan)
    try:
        return find_sts_tasks(folder, plan.measure.allow_partial)
    except NoStsDataError as error:
        if not plan.skip_absent and not find_cxc(folder):
            raise
        notes.append(f"no STS tasks: {error}")
        return []


def sts_folder(plan: Plan) -> Path:
    """Where STS sets are looked for."""
    return plan.sts or plan.data.data_root / "sts"

"""Search for the tasks of semantic textual similarity below a folder, and checks of their sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cusa.data.errors import DataError
from cusa.eval.evaluators.sts.layouts import tasks_in
from cusa.eval.evaluators.sts.tasks import TASKS, NoStsDataError, StsTask


def find_sts_tasks(folder: Path, allow_partial: bool = False) -> list[StsTask]:
    """Read every known task below a folder.

    Args:
        folder: A folder of one or more tasks, in any of the layouts of
            :mod:`cusa.eval.evaluators.sts.layouts`.
        allow_partial: Whether to accept tasks that lack subsets or pairs, with a note.

    Returns:
        The tasks, in the order of :data:`TASKS`.

    Raises:
        NoStsDataError: If there is no task.
        CusaError: If a file is missing or malformed, the counts are not the published ones, or a
            task exists twice with different content; the message names the file and the line.
    """
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise NoStsDataError(
            f"{folder} {problem}; pass a folder of STS data",
            path=folder,
        )
    candidates: dict[str, list[tuple[StsTask, Path]]] = defaultdict(list)
    for task_folder, file_names in _folders(folder):
        for task in tasks_in(task_folder, file_names):
            candidates[task.name].append((task, task_folder))
    if not candidates:
        raise NoStsDataError(
            f"{folder} holds no STS data; looked for STS.input.*.txt with STS.gs.*.txt, "
            "sts-{train,dev,test}.csv, {train,dev,test}.tsv with sentence1, sentence2 and score, "
            "and SICK_{train,trial,test_annotated}.txt",
            path=folder,
        )
    known_names = filter(candidates.__contains__, TASKS)
    return [_choose(candidates[name], allow_partial) for name in known_names]


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the names of its files, sorted."""
    below_root = sorted(path for path in root.rglob("*") if path.is_dir())
    for folder in (root, *below_root):
        yield folder, sorted(path.name for path in folder.iterdir() if path.is_file())


def _choose(
    candidates: Sequence[tuple[StsTask, Path]],
    allow_partial: bool,
) -> StsTask:
    """Choose the complete task among several copies of it, or a partial one if that is allowed."""
    complete = [candidate for candidate in candidates if not _differences(candidate[0])]
    (task, folder), *copies = complete or candidates
    if not complete and not allow_partial:
        raise DataError(
            f"{task.name} in {folder} is not the published one: {'; '.join(_differences(task))}; "
            "get the missing files, or pass --allow-partial to evaluate it as it is",
            path=folder,
            name=task.name,
        )
    for copy, copy_folder in copies:
        if copy.fingerprint != task.fingerprint:
            raise DataError(
                f"{task.name} is in {folder} and, with other content, in {copy_folder}; pass one "
                "of the two folders",
                path=copy_folder,
                name=task.name,
            )
    return StsTask(task.name, task.subsets, task.headline, (*task.notes, *_differences(task)))


def _differences(task: StsTask) -> list[str]:
    """Describe how a task's subsets and pairs differ from the published ones."""
    n_pairs = {subset.name: len(subset.gold) for subset in task.subsets}
    differences = []
    for name, n_published in TASKS[task.name].items():
        if name not in n_pairs:
            differences.append(f"{name} ({n_published} pairs) is missing")
        elif n_pairs[name] != n_published:
            differences.append(f"{name} has {n_pairs[name]} pairs instead of {n_published}")
    return differences

"""The output of ``cusa-train`` after its runs: their figures, and the table of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cusa.screen.console import console, print_plain
from cusa.train.commands import evaluation_command, has_split_to_measure
from cusa.train.sweep import figures, validated

if TYPE_CHECKING:
    from cusa.eval.evaluate import Evaluation
    from cusa.stages.train import TrainedRun


def print_next(runs: Sequence[TrainedRun], evaluation: Evaluation | None) -> None:
    """Print the figures of runs or, if they were not evaluated, the command that does it."""
    if evaluation is not None:
        from cusa.cli.evaluate_output import print_evaluation

        print_evaluation(evaluation)
        return
    run_dirs = [run.run_dir for run in runs]
    if has_split_to_measure(run_dirs[0]):
        print_plain(f"next: {evaluation_command(run_dirs)}")
    else:
        # No store is known, so that there is no command to paste.
        print_plain(f"next: cusa-eval --run {run_dirs[0]} --embeddings, and a store of other pairs")


def print_sweep(folder: Path, rows: Sequence[Any]) -> None:
    """Print the table of a sweep, and the files that it was written to.

    Args:
        folder: The sweep's folder.
        rows: The rows from :func:`cusa.train.sweep.summarize`.
    """
    if validated(rows):
        recalls = ("i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10")
        table = Table(*rows[0].values, "runs", *recalls, "RSUM", "RSUM, at the end")
        table.title = "validation split, best student: mean ± standard deviation"
        for row in rows:
            table.add_row(*row.values.values(), str(row.n), *figures(row))
        console().print(table)
    else:
        print_plain("no validation split: measure the runs with cusa-eval")
    print_plain(f"table: {folder / 'sweep.md'}, {folder / 'sweep.json'}")

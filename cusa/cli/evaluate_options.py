"""Options that the commands of ``cusa-eval`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cusa.cli.console import DEVICE_OPTION, NOT_NEGATIVE, PATH, POSITIVE, Decorator, choice_option
from cusa.cli.data_options import column_options, dataset_option

# Key in click's context for (spec, whether it is a run), in the order of the command line.
MODEL_SPECS_KEY = "cusa.eval.models.any_model"


def _options(*options: Decorator) -> Decorator:
    """Combine options into one decorator, in the order of ``--help``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        # The decorator that is applied last comes first in --help.
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _in_order(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Collect models and runs in one list, in the order of the command line."""
    specs = context.meta.setdefault(MODEL_SPECS_KEY, [])
    is_run = option.name == "run"
    specs += [(value, is_run) for value in values]
    return values


MODEL_OPTIONS = _options(
    click.option(
        "--model",
        multiple=True,
        metavar="MODEL",
        callback=_in_order,
        expose_value=False,
        help="A Hugging Face dual encoder or sentence-transformers model by name or folder; a "
        "teacher; a run. Repeat it to compare.",
    ),
    click.option(
        "--run",
        multiple=True,
        metavar="FOLDER",
        callback=_in_order,
        expose_value=False,
        help="A run of cusa-train or an exported folder, on this machine; repeatable.  [default: "
        "the latest under runs/]",
    ),
    click.option(
        "--image-embeddings",
        type=PATH,
        help="Image embeddings of another model: .npy, .h5 or .safetensors.",
    ),
    click.option(
        "--image-ids", type=PATH, help="Their ids, if the file has none: .txt, .json or .npy."
    ),
    click.option("--text-embeddings", type=PATH, help="Its text embeddings."),
    click.option("--text-ids", type=PATH, help="Their ids."),
    click.option(
        "--name", help="Name of that model in tables and below runs/eval.  [default: the files']"
    ),
)
RUN_OPTIONS = _options(
    choice_option(
        "--ties",
        "pessimistic",
        "mean",
        "optimistic",
        help="Count equal similarities against the model, as the mean of both, or for it.",
    ),
    click.option(
        "--bootstrap",
        type=NOT_NEGATIVE,
        default=1000,
        help="Number of resamplings of the queries for 95 % intervals; 0: none.",
    ),
    click.option(
        "--seed",
        type=NOT_NEGATIVE,
        default=0,
        help="Seed of the resampling, and of the choice of queries to show.",
    ),
    click.option(
        "--allow-partial", is_flag=True, help="Evaluate known data sets that are incomplete, too."
    ),
    choice_option("--checkpoint", "best", "last", help="Checkpoint of runs."),
    DEVICE_OPTION,
    click.option("--batch-size", type=POSITIVE, default=256),
    click.option(
        "--workers",
        type=NOT_NEGATIVE,
        help="Processes that read inputs.  [default: cores, at most 8]",
    ),
    click.option(
        "--out",
        type=PATH,
        help="Folder of report.html.  [default: the model's own results; for several, eval/ "
        "beside them]",
    ),
    click.option("--latex", is_flag=True, help="Write tables.tex beside the report, too."),
)
SPLIT_OPTIONS = _options(
    click.option("--split", default="test", help="Split of the store or data set."),
    dataset_option(help_text="Data set, as for cusa-precompute.  [default: the run's store]"),
    column_options,
    click.option("--embeddings", type=PATH, help="Another store than the run's own."),
    click.option("--image-root", type=PATH, help="Folder of the images, if not the data's own."),
)
RETRIEVAL_OPTIONS = _options(
    click.option(
        "--scores",
        type=PATH,
        help="Scores [images, captions] of a model that gives no embeddings, such as a reranker: "
        ".npy, .h5 or .safetensors, in the split's order or with --image-ids and --text-ids.",
    ),
    click.option(
        "--pmrp", type=PATH, help="Folder of pm_*.json: plausible matches of COCO's test split."
    ),
    click.option(
        "--judgements",
        type=PATH,
        multiple=True,
        help="People's judgements of the split's pairs: CrowdFlowerAnnotations.txt or "
        "ExpertAnnotations.txt of Flickr8k; repeatable.",
    ),
    click.option(
        "--gallery",
        type=NOT_NEGATIVE,
        default=6,
        help="Number of queries of each task to show in the report.",
    ),
)

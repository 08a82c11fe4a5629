"""Stage three as a function: models are evaluated, and a report is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from cusa.data.errors import RunError, SettingError
from cusa.data.hub import is_remote, require
from cusa.data.shell import flag_of
from cusa.stages.arguments import checked, columns_of, with_options
from cusa.stages.kinds import as_names
from cusa.stages.machine import default_workers, pick_device
from cusa.stages.options import EvaluateOptions

if TYPE_CHECKING:
    from cusa.eval.evaluate import Evaluation
    from cusa.eval.evaluators.request import EvalRequest, SplitRequest
    from cusa.eval.models.evaluated_models import ComputeOptions
    from cusa.eval.models.scores import ScoreFile

Model = str | os.PathLike[str]


@with_options(EvaluateOptions)
def evaluate(
    models: Model | Sequence[Model] = (),
    *,
    progress: bool = False,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Measure models, compare them, and write their results and a report.

    Args:
        models: The models, the first of which the others are compared with: runs, as
            :func:`cusa.train` returns them or by their directories, or what
            :func:`cusa.load_encoder` takes. By default, the latest run under ``runs/``, unless
            embeddings are given. A path (other than a text) is never looked up on the model hub.
        progress: Whether to show progress, as ``cusa-eval`` does.
        **options: The other flags of ``cusa-eval`` and its suites.

    Returns:
        The evaluation: ``metrics`` by model, the path of the ``report``, and the files written.

    Raises:
        CusaError: If an option, a model or its data cannot be used; the message names options as
            flags: ``--data-root`` is ``data_root``.
    """
    specs = _model_texts(models)
    given = checked(EvaluateOptions, options)
    _check_models(models, specs)
    from cusa.eval.evaluate import evaluate as evaluate_request
    from cusa.screen.progress import StepTasks, progress_display

    request = _request(specs, given)
    with progress_display(quiet=not progress) as progress_bar:
        return evaluate_request(request, StepTasks(progress_bar).advance)


def _model_texts(models: Model | Sequence[Model]) -> tuple[str, ...]:
    try:
        return as_names(models)
    except ValueError:
        raise SettingError(
            f"a model must be a run, a name or a path, got {models!r}", name="models"
        ) from None


def _check_models(models: Model | Sequence[Model], specs: Sequence[str]) -> None:
    """Refuse what is nowhere: hub models before libraries are imported, and mistyped runs."""
    given_models = models if isinstance(models, list | tuple) else (models,)
    are_paths = [not isinstance(model, str) for model in given_models]
    for spec, is_path in zip(specs, are_paths, strict=True):
        if not is_path and is_remote(spec):
            require(spec, RunError)

    from cusa.eval.models.any_model import check_model_name
    from cusa.eval.models.evaluated_models import check_local

    for spec, is_path in zip(specs, are_paths, strict=True):
        # Which kind of model lies in a folder is checked when it is loaded.
        check_local(spec, is_run=is_path and not os.path.exists(spec))
        check_model_name(spec)


def _request(specs: tuple[str, ...], given: Mapping[str, Any]) -> EvalRequest:
    from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
    from cusa.eval.metrics.bootstrap import Bootstrap
    from cusa.eval.metrics.metric_options import Scoring
    from cusa.eval.models.evaluated_models import latest_run

    suite = given.get("suite", "retrieval")
    judgements = given.get("judgements", ())
    embedding_files = (_embedding_file(given, "image"), _embedding_file(given, "text"))
    score_file = _score_file(given)
    if not specs and not any(embedding_files) and score_file is None:
        specs = (str(latest_run(Path("runs"))),)
    bootstrap = Bootstrap(given.get("bootstrap", 1000), given.get("seed", 0))
    scoring = Scoring(given.get("ties", "pessimistic"), bootstrap)
    return EvalRequest(
        suites=_suites(suite, bool(judgements)),
        skip_absent=suite == "all",
        models=specs,
        embedding_files=embedding_files,
        score_file=score_file,
        name=given.get("name"),
        split=_split_request(given),
        **_data_request(given.get("data", ()), suite),
        judgement_files=judgements,
        pmrp=given.get("pmrp"),
        options=MeasureOptions(scoring, given.get("allow_partial", False), given.get("gallery", 6)),
        compute=compute_options(given),
        out=given.get("out"),
        latex=given.get("latex", False),
    )


def _data_request(data: tuple[str, ...], suite: str) -> dict[str, Any]:
    """Return the image sets and the STS folder; refuse those that the suite would not read."""
    if suite == "images":
        return {"image_sets": data, "sts_folder": None}
    if data and suite != "sts":
        raise SettingError(
            f"data is for the suites images and sts, and the suite is {suite}; pass dataset or "
            "data_root instead",
            name="data",
        )
    if len(data) > 1:
        raise SettingError(
            f"the suite sts reads one folder of sets; got {len(data)} as data", name="data"
        )
    sts_folder = next(map(Path, data), None)
    return {"image_sets": (), "sts_folder": sts_folder}


def _suites(suite: str, with_judgements: bool) -> tuple[str, ...]:
    suites: tuple[str, ...] = (suite,)
    if suite == "all":
        suites = ("retrieval", "images", "sts")
    if with_judgements:
        return (*suites, "judgements")
    return suites


def _split_request(given: Mapping[str, Any]) -> SplitRequest:
    from cusa.eval.evaluators.request import SplitRequest

    return SplitRequest(
        split=given.get("split", "test"),
        dataset=given.get("dataset"),
        data_root=given.get("data_root", Path("data")),
        embeddings=given.get("embeddings"),
        image_root=given.get("image_root"),
        columns=columns_of(given),
    )


def compute_options(given: Mapping[str, Any]) -> ComputeOptions:
    """Return how embeddings are computed, by the options ``device``, ``checkpoint`` and so on."""
    from cusa.eval.models.evaluated_models import ComputeOptions

    return ComputeOptions(
        device=pick_device(given.get("device", "auto")),
        checkpoint=given.get("checkpoint", "best"),
        batch_size=given.get("batch_size", 256),
        workers=given.get("workers"),
        readers=default_workers(inputs_are_stored=False),
    )


def _score_file(given: Mapping[str, Any]) -> ScoreFile | None:
    from cusa.eval.models.scores import ScoreFile

    scores_path = given.get("scores")
    if scores_path is None:
        return None
    # Their files of ids would be the same.
    for option in ("image_embeddings", "text_embeddings"):
        if given.get(option):
            raise SettingError(
                f"--scores and {flag_of(option)} are of two models; measure one at a "
                "time, each with its ids",
                name="scores",
            )
    if given.get("judgements"):
        raise SettingError(
            "--judgements are compared with cosines of embeddings, and --scores gives none; pass "
            "one of the two",
            name="judgements",
        )
    return ScoreFile(scores_path, given.get("image_ids"), given.get("text_ids"))


def _embedding_file(given: Mapping[str, Any], modality: str) -> tuple[Path, Path | None] | None:
    rows_path = given.get(f"{modality}_embeddings")
    ids_path = given.get(f"{modality}_ids")
    if rows_path:
        return rows_path, ids_path
    if ids_path and not given.get("scores"):
        raise SettingError(
            f"--{modality}-ids {ids_path} is given without embeddings; pass "
            f"--{modality}-embeddings or --scores as well",
            path=ids_path,
            name=f"{modality}_ids",
        )
    return None

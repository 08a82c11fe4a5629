"""The suite "images": image-to-image retrieval by class; images.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cusa.data.embeddings import Head
from cusa.data.errors import DataError, SettingError
from cusa.eval.evaluators.images.data import FOLDER, ImageSet, find_image_sets, load_image_set
from cusa.eval.evaluators.images.known_sets import IMAGE_SETS
from cusa.eval.evaluators.images.results import (
    IMAGES_FILE,
    ImageFigures,
    ImageSetResults,
    ImagesResults,
    average_r1,
)
from cusa.eval.evaluators.images.tables import images_section
from cusa.eval.evaluators.protocol import (
    Absent,
    Evaluator,
    SuiteResult,
    absent_without,
    published_row,
    results_head,
)
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.metrics.by_class import image_figures, image_search
from cusa.eval.metrics.full_ranking import rank_all
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.models.embedding_providers import EmbeddingProvider
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.tables import NamedResult, Section


class ImagesEvaluator(Evaluator[Sequence[ImageSet], ImagesResults]):
    """Image retrieval by class, on published data sets or any folder with one folder per class."""

    name = "images"
    results_file = IMAGES_FILE

    def find(self, request: EvalRequest, splits: SplitFinder) -> Sequence[ImageSet] | Absent:
        """Find the requested image sets, or by default all known ones below the data root.

        Raises:
            CusaError: If a set is malformed, or two have the same name.
        """
        root = request.split.data_root
        sets_below_root = find_image_sets(root)
        folders = []
        for text in request.image_sets:
            folders.append(_named_folder(text, root, sets_below_root))
        if not folders:
            folders += sets_below_root.items()
        if not folders:
            reason = f"no image sets below {root}/ (known: {', '.join(IMAGE_SETS)})"
            advice = "add some, or pass --data NAME=FOLDER"
            return Absent(reason, DataError(f"{reason}; {advice}", path=root))
        image_sets: dict[str, ImageSet] = {}
        for name, folder in folders:
            image_set = load_image_set(name, folder, request.options.allow_partial)
            _check_name(image_set, name, folder, image_sets)
            image_sets[image_set.name] = image_set
        return list(image_sets.values())

    def run(
        self, model: EvaluatedModel, data: Sequence[ImageSet], options: MeasureOptions
    ) -> SuiteResult[ImagesResults] | Absent:
        """Measure a model on every set."""
        need = "image retrieval needs a model that does"
        if absent := absent_without(frozenset({"image"}), model, "image retrieval", need):
            return absent
        image_sets: dict[str, ImageSetResults] = {}
        fingerprints: dict[str, str] = {}
        per_query: dict[str, Rankings] = {}
        for image_set in data:
            name = image_set.name
            image_sets[name], rankings = _measure_image_set(model.provider, image_set, options)
            fingerprints[name] = image_set.fingerprint
            for head, ranked in rankings.items():
                per_query[f"{name}/{head}/i2i"] = ranked
        content = {
            **results_head(self.results_file, model),
            **options.scoring.to_dict(),
            "head": model.provider.uni_head,
            "sets": image_sets,
            "average": average_r1(image_sets, model.provider.heads),
            **published_row(model, "image_retrieval_r1"),
        }
        return SuiteResult(cast("ImagesResults", content), fingerprints, per_query)

    def tables(self, results: Sequence[NamedResult[ImagesResults]]) -> list[Section]:
        """Make the tables of image retrieval."""
        return [images_section(results)]


def _measure_image_set(
    provider: EmbeddingProvider, image_set: ImageSet, options: MeasureOptions
) -> tuple[ImageSetResults, dict[Head, Rankings]]:
    """Return the results on an image set, and the rankings behind them by head."""
    queries, gallery = image_set.queries, image_set.gallery
    query_rows = provider.images(queries.ids, queries.paths)
    gallery_rows = provider.images(gallery.ids, gallery.paths) if gallery else None
    heads: dict[Head, ImageFigures] = {}
    rankings: dict[Head, Rankings] = {}
    for head, rows in query_rows.items():
        if gallery is not None and gallery_rows is not None:
            search = image_search(rows, queries.labels, gallery_rows[head], gallery.labels)
        else:
            search = image_search(rows, queries.labels)
        rankings[head] = rank_all(*search)
        heads[head] = cast("ImageFigures", image_figures(rankings[head], options.scoring))
    results: ImageSetResults = {
        "fingerprint": image_set.fingerprint,
        "classes": image_set.n_classes,
        "notes": list(image_set.notes),
        "heads": heads,
    }
    return results, rankings


def _named_folder(text: str, root: Path, sets_below_root: dict[str, Path]) -> tuple[str, Path]:
    """Parse ``NAME=FOLDER``, the name of a known set, or the folder of any other set."""
    name, equals, folder = text.partition("=")
    if not equals or Path(text).is_dir():
        if text in IMAGE_SETS:
            return text, sets_below_root.get(text, root / text)
        return FOLDER, Path(text)
    if name not in (*IMAGE_SETS, FOLDER):
        raise SettingError(
            f"--data {text}: unknown image set {name!r}; "
            f"legal: {', '.join(IMAGE_SETS)}, or a FOLDER",
            name="data",
        )
    return name, Path(folder)


def _check_name(
    image_set: ImageSet, kind: str, folder: Path, image_sets: dict[str, ImageSet]
) -> None:
    """Refuse two sets of the same name, and any other folder with the name of a published set."""
    if image_set.name in image_sets:
        raise SettingError(
            f"two image sets are named {image_set.name!r}; pass each once, or rename a folder",
            name="data",
        )
    if kind == FOLDER and image_set.name in IMAGE_SETS:
        raise SettingError(
            f"--data {folder}: the folder has the name of a published set; pass "
            f"{image_set.name}={folder} if it holds that set, or rename it",
            path=folder,
            name="data",
        )

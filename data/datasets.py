"""Data sets by name, or from annotation files, as records grouped by image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from cusa.data.errors import DataError
from cusa.data.grouping import group_rows
from cusa.data.readers import Source, read_annotations
from cusa.data.readers.forms import AnnotationRow, Annotations
from cusa.data.readers.split_names import canonical_split
from cusa.data.records import AnnotationFile, Dataset, Record, Records, entry_position

# Images per split of the Karpathy splits; COCO's train includes restval.
KNOWN_SIZES = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_000, "test": 1_000},
}
_ANNOTATIONS = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}

Sources = str | Path | Sequence[str | Path]


def load_dataset(
    sources: Sources, image_root: Path | str | None = None, data_root: Path | str = "data"
) -> Dataset:
    """Read a data set by name or from annotation files.

    Args:
        sources: ``"coco"``, ``"flickr30k"`` (annotations and images under ``data_root/<name>``),
            ``"demo"`` (rendered there on first use), or the path of an annotation file; or several
            paths, which make one data set. A file of a form without splits (ALBEF, flat, COCO's
            own) takes its split from its name (``…_train.json``) or from ``train=PATH``.
        image_root: Folder that the image paths are relative to; by default the first annotation
            file's own folder, or the one above where the first image lies there instead.
        data_root: Where named data sets lie.

    Returns:
        The data set, its splits in the order train, val, test.

    Raises:
        DataError: If a file is missing, or ids cannot be joined; says which and what to do.
        FileFormatError: If a file is of no known form, or an entry of it is malformed; names the
            entry.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    source_texts = [_as_utf8(os.fspath(source), "--dataset") for source in sources]
    given_root = None
    if image_root is not None:
        given_root = Path(_as_utf8(os.fspath(image_root), "--image-root"))
    if not source_texts:
        raise DataError(
            "no data set given; pass --dataset coco, flickr30k, demo or the path of an annotation "
            "file"
        )

    if source_texts == ["demo"]:
        from cusa.data.demo_set.make import make_demo

        return make_demo(Path(data_root) / "demo")
    if len(source_texts) == 1 and source_texts[0] in _ANNOTATIONS:
        return _load_named(source_texts[0], given_root, Path(data_root))
    paths_by_split = [_parse_source(text) for text in source_texts]
    _, first_path = paths_by_split[0]
    folders = [first_path.parent, first_path.parent.parent]
    if given_root is not None:
        folders = [given_root]
    return _read_files([Source(path, split, folders) for split, path in paths_by_split])


def _as_utf8(name: str, option: str) -> str:
    """Return a path that can be written down; others are refused before anything is computed."""
    try:
        name.encode()
    except UnicodeEncodeError:
        message = f"{option} {name!r}: the name is not UTF-8; rename it"
        raise DataError(message, name=option) from None
    return name


def _parse_source(text: str) -> tuple[str | None, Path]:
    """Split ``train=PATH`` into the split and the path; of ``PATH`` alone, the split is ``None``.

    A file whose own name holds "=" wins.
    """
    split_name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        split = canonical_split(split_name, location=f"--dataset {text}")
        return split, Path(path)
    return None, Path(text)


def _load_named(name: str, image_root: Path | None, data_root: Path) -> Dataset:
    """Read COCO or Flickr30k from their usual places under the data root."""
    folder = data_root / name
    file_name = _ANNOTATIONS[name]
    path = folder / file_name
    if not path.is_file():
        path = folder / "annotations" / file_name
    if not path.is_file():
        raise DataError(
            f"{folder / file_name} does not exist; put Karpathy's {file_name} and the images under "
            f"{folder}/, or pass --data-root, or --dataset PATH --image-root FOLDER",
            path=folder / file_name,
            name=name,
        )

    folders = [folder, folder / "images", folder / f"{name}-images", folder / f"{name}_images"]
    if image_root is not None:
        folders = [image_root]
    return _read_files([Source(path, None, folders)], name)


def _folder_of_images(folders: Sequence[Path], splits: Mapping[str, Records]) -> Path | None:
    """Return the first folder that has the first image, or ``None``."""
    first_record = next(chain.from_iterable(splits.values()))
    for folder in folders:
        # Path.is_file raises on names that are too long.
        if os.path.isfile(folder / first_record.image_path):
            return folder
    return None


def _size_notes(name: str, splits: Mapping[str, Sequence[Record]]) -> tuple[str, ...]:
    """Describe how a data set differs from the known sizes of the one of that name."""
    notes = []
    for split, expected in KNOWN_SIZES.get(name, {}).items():
        n_images = len(splits.get(split, ()))
        if n_images != expected:
            note = f"{name} {split} has {n_images:,} images, the Karpathy split has {expected:,}"
            notes.append(note)
    return tuple(notes)


def _read_files(sources: Sequence[Source], name: str | None = None) -> Dataset:
    """Read a data set; images may lie in the first file's folders, which also may name it."""
    annotations = [read_annotations(source) for source in sources]
    files = []
    for source, content in zip(sources, annotations, strict=True):
        files.append(AnnotationFile(source.path, content.location_format))
    splits = group_rows(_positioned_rows(annotations), files)

    name = name or annotations[0].dataset_name
    folders = sources[0].image_folders
    return Dataset(
        name,
        image_root=_folder_of_images(folders, splits) or folders[0],
        splits=splits,
        notes=_size_notes(name, splits),
        files=tuple(files),
    )


def _positioned_rows(annotations: Iterable[Annotations]) -> Iterator[tuple[int, AnnotationRow]]:
    """Yield the rows of all files, each with its position."""
    for file_number, content in enumerate(annotations):
        for row in content.rows:
            yield entry_position(file_number, row.number), row

"""Data sets by name, or from annotation files, as records grouped by image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from cusa.data.dataset_names import ANNOTATIONS, as_utf8, source_texts
from cusa.data.errors import DataError
from cusa.data.grouping import group_rows
from cusa.data.readers import Source, memory, read_annotations
from cusa.data.readers.columns import USUAL_COLUMNS, ColumnNames, refuse_columns
from cusa.data.readers.folders import expand_folder, image_folders_near
from cusa.data.readers.forms import AnnotationRow, Annotations
from cusa.data.readers.saved_dataset import HUB_PREFIX, read_hub
from cusa.data.readers.split_names import canonical_split
from cusa.data.record_columns import Records
from cusa.data.records import AnnotationFile, Dataset, entry_position

# Images in each of the Karpathy splits (COCO's train includes restval); for Flickr8k, in its
# official splits.
KNOWN_SIZES = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_000, "test": 1_000},
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
}


def load_dataset(
    sources: Any,
    image_root: Path | str | None = None,
    data_root: Path | str = "data",
    columns: ColumnNames = USUAL_COLUMNS,
) -> Dataset:
    """Read a data set by name, from files or folders, from the hub, or from rows in memory.

    Args:
        sources: ``"coco"``, ``"flickr30k"``, ``"flickr8k"`` (annotations and images under
            ``data_root/<name>``), ``"demo"`` (rendered there on first use), ``"hf:OWNER/NAME"`` or
            ``"hf:OWNER/NAME:split"`` (through the package ``datasets``), or the path of an
            annotation file or of a folder; or several paths, which make one data set. A file of a
            form without splits (ALBEF, flat, COCO's own) takes its split from its name
            (``…_train.json``) or from ``train=PATH``. Or rows: a list of dictionaries, a
            ``pandas.DataFrame``, a ``datasets.Dataset`` or a ``datasets.DatasetDict``. docs/data.md
            shows every form. Or a data set that was read already, which is returned, with
            ``image_root`` if it is given.
        image_root: Folder that the image paths are relative to. By default it is looked for near
            the first annotation file: that file's folder, a subfolder such as ``images``, or the
            parent, whichever has the first image. Pictures embedded in a file (Parquet,
            ``datasets``) are written to this folder, by default to ``data_root/unpacked``.
        data_root: Folder that holds the named data sets.
        columns: Names of table columns, where they are not among the usual ones.

    Returns:
        The data set, its splits in the order train, val, test.

    Raises:
        DataError: If a file is missing, an image has no caption, or an id is ambiguous; says which
            and what to do.
        FileFormatError: If a file has no known form, or one of its entries is malformed; names the
            entry.
    """
    root = None
    if image_root is not None:
        root = Path(as_utf8(os.fspath(image_root), "image_root"))
    if isinstance(sources, Dataset):
        refuse_columns(columns, "a data set that was read already", Path(sources.name))
        return replace(sources, image_root=root or sources.image_root)
    unpack_folder = root or Path(data_root) / "unpacked"
    template = Source(Path(), None, (), columns=columns, unpack_folder=unpack_folder)
    if memory.is_rows(sources):
        return _load_rows(sources, template, root)
    texts = source_texts(sources)
    if texts == ["demo"]:
        refuse_columns(columns, "the embedded data set", Path("demo"))
        from cusa.data.demo_set.make import make_demo

        return make_demo(Path(data_root) / "demo")
    if len(texts) == 1 and texts[0] in ANNOTATIONS:
        return _load_named(texts[0], root, Path(data_root), template)
    if len(texts) == 1 and texts[0].startswith(HUB_PREFIX):
        return _load_hub(texts[0], template)
    return _load_files(texts, root, template)


def _parse_source(text: str) -> tuple[str | None, Path]:
    """Split ``train=PATH`` into the split and the path; for ``PATH`` alone, the split is ``None``.

    If a file of the whole text exists, the "=" belongs to its name.
    """
    split_name, equals, path = text.partition("=")
    # Path.exists raises on names that are too long.
    if equals and not os.path.exists(text):
        split = canonical_split(split_name, location=f"--dataset {text}")
        return split, Path(path)
    return None, Path(text)


def _load_rows(rows: Any, template: Source, image_root: Path | None) -> Dataset:
    """Build the data set from rows in memory."""
    folders = [image_root or Path()]
    source = replace(template, path=memory.PATH, image_folders=folders)
    annotations = memory.read_rows(rows, source)
    return _grouped([source] * len(annotations), annotations)


def _load_hub(text: str, template: Source) -> Dataset:
    """Load a data set from the Hugging Face hub."""
    name = text.removeprefix(HUB_PREFIX)
    unpack_folder = template.unpack_folder
    assert unpack_folder is not None, "load_dataset names one"
    source = replace(template, path=Path(text), image_folders=[unpack_folder])
    annotations = read_hub(name, source)
    return _grouped([source] * len(annotations), annotations, name.partition(":")[0].split("/")[-1])


def _load_files(texts: Sequence[str], image_root: Path | None, template: Source) -> Dataset:
    """Read a data set from annotation files and folders, each as a path or ``split=PATH``."""
    sources: list[Source] = []
    notes: list[str] = []
    for text in texts:
        split, path = _parse_source(text)
        folders: Sequence[Path] = ()
        if image_root is not None:
            folders = [image_root]
        elif not os.path.isdir(path):
            folders = image_folders_near(path.parent)
        source = replace(template, path=path, split=split, image_folders=folders)
        if not os.path.isdir(path):
            sources.append(source)
            continue
        folder_sources, folder_notes = expand_folder(source)
        sources.extend(folder_sources)
        notes.extend(folder_notes)
    dataset = _grouped(
        sources, [read_annotations(source) for source in sources], _folder_name(texts)
    )
    return replace(dataset, notes=(*notes, *dataset.notes))


def _folder_name(texts: Sequence[str]) -> str | None:
    """Name a data set after its folder, if it was given as a single folder."""
    path = Path(texts[0])
    if len(texts) > 1 or not os.path.isdir(path):
        return None
    return path.resolve().name or None


def _load_named(
    name: str,
    image_root: Path | None,
    data_root: Path,
    template: Source,
) -> Dataset:
    """Read a named data set from its usual place under the data root."""
    folder = data_root / name
    paths = [folder / place for place in ANNOTATIONS[name]]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{paths[0]} does not exist; put Karpathy's {paths[0].name} and the images under "
            f"{folder}/ (docs/data.md), or pass --data-root, or --dataset PATH --image-root FOLDER",
            path=paths[0],
            name=name,
        )

    folders = [*image_folders_near(folder), folder / f"{name}-images", folder / f"{name}_images"]
    if image_root is not None:
        folders = [image_root]
    source = replace(template, path=path, image_folders=folders)
    return _grouped([source], [read_annotations(source)], name)


def _folder_of_images(folders: Sequence[Path], splits: Mapping[str, Records]) -> Path | None:
    """Return the first folder that holds the data set's first image, or ``None``."""
    first_path = next(iter(splits.values())).image_paths[0]
    for folder in folders:
        # Unlike Path.is_file, this does not raise on names that are too long.
        if os.path.isfile(folder / first_path):
            return folder
    return None


def _size_notes(name: str, splits: Mapping[str, Records]) -> tuple[str, ...]:
    """Describe where a data set's sizes differ from those known for its name."""
    notes = []
    for split, expected in KNOWN_SIZES.get(name, {}).items():
        n_images = len(splits.get(split, ()))
        if n_images != expected:
            note = f"{name} {split} has {n_images:,} images, the Karpathy split has {expected:,}"
            notes.append(note)
    return tuple(notes)


def _grouped(
    sources: Sequence[Source],
    annotations: Sequence[Annotations],
    name: str | None = None,
) -> Dataset:
    """Group what was read into a data set.

    Args:
        sources: The files; the images are looked for in the first one's folders.
        annotations: The annotations of each file.
        name: Name of the data set; ``None``: the name that the first file gives.
    """
    files = []
    for source, content in zip(sources, annotations, strict=True):
        files.append(AnnotationFile(source.path, content.location_format))
    splits = group_rows(_positioned_rows(annotations), files)

    name = name or annotations[0].dataset_name
    file_notes = chain.from_iterable(content.notes for content in annotations)
    return Dataset(
        name,
        image_root=_image_root(sources, annotations, splits),
        splits=splits,
        notes=(*file_notes, *_size_notes(name, splits)),
        files=tuple(files),
    )


def _image_root(
    sources: Sequence[Source],
    annotations: Sequence[Annotations],
    splits: Mapping[str, Records],
) -> Path:
    """Return the folder that the image paths of all files are relative to.

    Raises:
        DataError: If the files' images lie in different folders: some files embed their pictures,
            or are folders of images, and others refer to images elsewhere.
    """
    image_folders = {content.image_folder for content in annotations}
    if len(image_folders) > 1:
        raise DataError(
            "the images of these files lie in different folders; make a store of each, or put all "
            "images below one folder and pass annotations that name them there",
            path=sources[0].path,
        )
    image_folder = annotations[0].image_folder
    if image_folder is not None:
        return image_folder
    folders = sources[0].image_folders
    return _folder_of_images(folders, splits) or folders[0]


def _positioned_rows(annotations: Iterable[Annotations]) -> Iterator[tuple[int, AnnotationRow]]:
    """Yield the rows of all files, each with its position (:func:`entry_position`)."""
    for file_number, content in enumerate(annotations):
        for row in content.rows:
            yield entry_position(file_number, row.number), row

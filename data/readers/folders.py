"""Discovery of the data in a folder: annotation files, or images with caption files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from cusa.data.errors import CusaError, DataError
from cusa.data.image_folder import find_images
from cusa.data.readers import saved_dataset, sidecar_captions
from cusa.data.readers.forms import Source
from cusa.data.readers.split_names import canonical_split, split_by_alias

_METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PARQUET = "Parquet files"
# Files of annotations under any name, which a folder's reader does not choose among.
_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_MAX_SHOWN_FILES = 3
# The forms, and patterns of their files; forms with splits come first. Flickr8k.lemma.token.txt is
# not among them: it has lemmas instead of captions.
_ANNOTATION_PATTERNS = (
    ("Karpathy's dataset_NAME.json", "dataset_*.json"),
    ("Karpathy's dataset_NAME.json", "annotations/dataset_*.json"),
    ("Flickr's NAME.token", "*.token"),
    ("Flickr's NAME.token", "Flickr8k.token.txt"),
    ("Flickr's NAME.token", "*/Flickr8k.token.txt"),
    ("COCO's captions_SPLIT.json", "captions_*.json"),
    ("COCO's captions_SPLIT.json", "annotations/captions_*.json"),
    ("Kaggle's captions.txt", "captions.txt"),
    ("Kaggle's results.csv", "results.csv"),
    ("Kaggle's results.csv", "flickr30k_images/results.csv"),
    ("a table captions.csv", "captions.csv"),
    (_PARQUET, "*.parquet"),
    (_PARQUET, "data/*.parquet"),
)
# Folders that published archives unpack their images to.
_IMAGE_FOLDER_NAMES = (
    "images",
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k_images",
    "flickr30k-images",
    "flickr30k_images/flickr30k_images",
)


def image_folders_near(folder: Path) -> list[Path]:
    """Return where the images of an annotation file in a folder may be, likeliest first."""
    # The folder in which the command runs has no parent by name.
    parent = folder.parent if folder.name else folder.absolute().parent
    return [*_with_image_folders(folder), *_with_image_folders(parent)]


def _with_image_folders(folder: Path) -> list[Path]:
    """Return a folder, and its subfolders with the usual names of folders of images."""
    subfolders = [folder / name for name in _IMAGE_FOLDER_NAMES]
    return [folder, *filter(Path.is_dir, subfolders)]


def expand_folder(source: Source) -> tuple[list[Source], tuple[str, ...]]:
    """Find what to read in a folder.

    Args:
        source: The folder.

    Returns:
        The annotation files, or the folder itself if ``datasets`` saved it or its images have
        caption files beside them; and notes for the user.

    Raises:
        DataError: If it holds none of the known forms; lists them.
    """
    folder = source.path
    if saved_dataset.is_saved_dict(folder):
        return _saved_splits(source), ()
    if saved_dataset.is_saved(folder):
        return [replace(source, image_folders=_folders(source))], ()
    metadata = _metadata_sources(source)
    if metadata:
        return metadata, _unread_metadata(folder, metadata)
    candidates = _annotation_files(folder)
    image_paths: list[Path] = []
    # img2dataset writes tables about the pictures beside folders of pictures with captions.
    if not candidates or candidates[0][0] == _PARQUET:
        image_paths = _images(folder)
    if sidecar_captions.has_sidecars(image_paths):
        notes = _notes(folder, sidecar_captions.DESCRIPTION, candidates)
        return [replace(source, image_paths=image_paths)], notes
    if not candidates:
        _refuse_folder(folder, len(image_paths))
    form, paths = candidates[0]
    sources = [replace(source, path=path, image_folders=_folders(source)) for path in paths]
    return sources, _notes(folder, form, candidates[1:])


def _refuse_folder(folder: Path, n_images: int) -> NoReturn:
    """Raise the error of a folder of no known form; it says what is there."""
    legal = ["a folder that datasets saved", "an imagefolder with metadata.csv, .jsonl or .parquet"]
    legal += list(dict.fromkeys(form for form, _ in _ANNOTATION_PATTERNS))
    legal.append(sidecar_captions.DESCRIPTION)
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _TABLE_SUFFIXES]
    contents = "nothing of the kind"
    advice = "pass the annotation file itself"
    if tables:
        contents = _relative_names(tables[:_MAX_SHOWN_FILES], folder)
    elif any(folder.glob("*.tar")):
        contents = "WebDataset's .tar files"
        advice = "only cusa-precompute reads them; unpack them into one folder"
    elif n_images:
        contents = f"{n_images:,} images without captions"
    raise DataError(
        f"folder {folder} holds none of the forms that were looked for: {'; '.join(legal)}; "
        f"it holds {contents}: {advice}",
        path=folder,
        name=contents,
    )


def _folders(source: Source) -> Sequence[Path]:
    """Return where the images of a folder's annotation files may be."""
    if source.image_folders:
        return source.image_folders
    return image_folders_near(source.path)


def _saved_splits(source: Source) -> list[Source]:
    """Return a source for each split of a saved ``DatasetDict``."""
    sources = []
    for state_path in sorted(source.path.glob("*/state.json")):
        split_path = state_path.parent
        split = source.split or canonical_split(split_path.name, split_path)
        sources.append(
            replace(source, path=split_path, split=split, image_folders=_folders(source))
        )
    return sources


def _metadata_sources(source: Source) -> list[Source]:
    """Return an imagefolder's ``metadata`` files: one in the folder, or one per split folder."""
    folder = source.path
    image_folders = source.image_folders or [folder]
    sources = []
    for path in _metadata_files(folder):
        prefix = ""
        split = source.split
        if path.parent != folder:
            prefix = f"{path.parent.relative_to(folder).as_posix()}/"
            split = split or split_by_alias(path.parent.name)
        sources.append(
            replace(
                source,
                path=path,
                split=split,
                image_folders=image_folders,
                image_prefix=prefix,
            )
        )
    return sources


def _metadata_files(folder: Path) -> list[Path]:
    """Return the folder's metadata file or, if it has none, that of each folder in it or data/."""
    for name in _METADATA_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    paths = []
    for subfolder in sorted([*folder.iterdir(), *folder.glob("data/*")]):
        for name in _METADATA_NAMES:
            if (subfolder / name).is_file():
                paths.append(subfolder / name)
                break
    return paths


def _unread_metadata(
    folder: Path,
    sources: Sequence[Source],
) -> tuple[str, ...]:
    """Say which ``metadata`` files of an imagefolder are not read, and which splits have none."""
    read_paths = [source.path for source in sources]
    read_folders = {path.parent for path in read_paths}
    subfolders = sorted(filter(Path.is_dir, folder.iterdir()))
    unread = []
    notes = []
    for parent in (folder, *subfolders):
        for name in _METADATA_NAMES:
            path = parent / name
            if path.is_file() and path not in read_paths:
                unread.append(path)
        is_split = split_by_alias(parent.name) is not None
        if is_split and folder not in read_folders and parent not in read_folders:
            notes.append(f"{parent}: it has no metadata file; its images are left out")
    if unread:
        notes.append(
            f"{folder}: {_relative_names(read_paths, folder)} is read; not read: "
            f"{_relative_names(unread, folder)}"
        )
    return tuple(notes)


def _relative_names(paths: Iterable[Path], folder: Path) -> str:
    return ", ".join(path.relative_to(folder).as_posix() for path in paths)


def _annotation_files(folder: Path) -> list[tuple[str, list[Path]]]:
    """Return the folder's annotation files by form, recognised by their usual names."""
    candidates = []
    for form, pattern in _ANNOTATION_PATTERNS:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file())
        if paths:
            candidates.append((form, paths))
    return candidates


def _notes(
    folder: Path, form: str, unread: Sequence[tuple[str, Sequence[Path]]]
) -> tuple[str, ...]:
    """Note which files are not read, if the folder also has files of other forms."""
    if not unread:
        return ()
    unread_paths: list[Path] = []
    for _, paths in unread:
        unread_paths.extend(paths)
    return (f"{folder}: {form} is read; not read: {_relative_names(unread_paths, folder)}",)


def _images(folder: Path) -> list[Path]:
    try:
        return find_images(folder)
    except CusaError:  # there are none
        return []

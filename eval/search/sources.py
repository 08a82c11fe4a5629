"""The source of an index: a folder of images, or a file of texts."""

from __future__ import annotations

from pathlib import Path

from cusa.data.errors import DataError
from cusa.data.image_folder import find_images
from cusa.eval.search.index_folder import Modality


def read_texts(text_file: Path) -> tuple[list[str], int]:
    """Read the texts of a file, one per line, stripped of white space.

    Returns:
        The texts, and the number of empty lines.

    Raises:
        DataError: If the file is missing, is not UTF-8, or holds no text.
    """
    # Some editors begin a file with a byte order mark, which utf-8-sig drops.
    try:
        with text_file.open(encoding="utf-8-sig") as stream:
            lines = [line.strip() for line in stream]
    except FileNotFoundError:
        raise DataError(
            f"{text_file} does not exist; pass a folder of images, or a .txt file of one text per "
            "line",
            path=text_file,
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            f"{text_file} is not UTF-8 text; convert it, or pass a folder of images",
            path=text_file,
        ) from None

    texts = [line for line in lines if line]
    if not texts:
        raise DataError(f"{text_file} holds no text; write one per line", path=text_file)
    return texts, len(lines) - len(texts)


def read_source(source: Path) -> tuple[Modality, list[str], int]:
    """Read the items of a source: the paths of images, or texts.

    Args:
        source: A folder of images, or a ``.txt`` file with a text per line.

    Returns:
        The modality, the items, and the number of empty lines.

    Raises:
        CusaError: If the source is missing, of another kind, or has no items.
    """
    if source.is_dir():
        return "image", [str(path) for path in find_images(source)], 0
    if source.exists() and source.suffix.lower() != ".txt":
        raise DataError(
            f"{source} is neither a folder of images nor a .txt file of one text per line; pass "
            "one of them",
            path=source,
        )
    return "text", *read_texts(source)

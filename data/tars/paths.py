"""The tars of a set, as a user names them."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from cusa.data.errors import DataError
from cusa.data.objects.folder import is_remote, location_text, open_folder, split_file
from cusa.data.tars.pairs import IMAGE_EXTENSIONS, name_of_tar
from cusa.data.tars.units import PARQUET_SUFFIX, TAR_SUFFIX, UNIT_SUFFIXES


def are_tars(datasets: Sequence[str]) -> bool:
    """Return whether every data set is tars, as a path, pattern or folder, or a pattern of Parquet.

    A Parquet file by its own name is a data set like any other table.
    """
    return bool(datasets) and all(map(_is_tar, datasets))


def _is_tar(dataset: str) -> bool:
    if is_remote(dataset):
        return True
    if os.path.isdir(dataset):
        return _is_folder_of_tars(Path(dataset))
    if dataset.endswith((PARQUET_SUFFIX, f"{PARQUET_SUFFIX}}}")):
        return not os.path.exists(dataset) and ("{" in dataset or glob.has_magic(dataset))
    return dataset.endswith((TAR_SUFFIX, f"{TAR_SUFFIX}}}"))


def _is_folder_of_tars(folder: Path) -> bool:
    """Return whether a folder has tars and no other data, such as pictures or folders of them.

    img2dataset writes a ``.parquet`` and a ``.json`` beside each tar, and a folder ``_tmp``.
    """
    has_tars = False
    for path in folder.glob("[!._]*"):
        has_tars |= path.suffix == TAR_SUFFIX
        if path.is_dir() or path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS:
            return False
    return has_tars


def expand_tars(datasets: Sequence[str]) -> list[Path]:
    """Return the tars that patterns and folders name, sorted by their names.

    Args:
        datasets: Paths or URLs of tars, with ``{00000..01242}``, ``{a,b}``, ``*`` and ``?`` as in a
            shell, and folders of tars; or Parquet files, as patterns.

    Returns:
        The tars; pathlib writes a URL ``s3://BUCKET/NAME.tar`` as ``s3:/BUCKET/NAME.tar``.

    Raises:
        DataError: If a pattern matches nothing, or two tars have the same name.
        ObjectError: If an object store does not list its tars.
    """
    paths: dict[str, Path] = {}
    for dataset in datasets:
        for path in _expand(dataset):
            name = name_of_tar(path)
            other = paths.setdefault(name, path)
            if other != path:
                raise DataError(
                    f"{location_text(other)} and {location_text(path)} have the same name, which "
                    "the files of a set are named after; rename one of them, or give each set a "
                    "store of its own",
                    path=path,
                    name=name,
                )
    for name, path in paths.items():
        if name.startswith(".") or not name.isprintable():
            raise DataError(
                f"{str(path)!a} cannot name the files of a set, as its name begins with a dot or "
                "has characters that are not printable; rename it",
                path=path,
                name=name,
            )
    if not paths:
        raise DataError("no tars are given; pass their paths, or a folder of tars", name="dataset")
    return [paths[name] for name in sorted(paths)]


def _expand(dataset: str) -> list[Path]:
    if os.path.isdir(dataset):
        paths = list(Path(dataset).glob(f"[!.]*{TAR_SUFFIX}"))
        if not paths:
            raise DataError(f"folder {dataset} has no tars; check the path", name=dataset)
        return paths
    try:
        patterns = list(braceexpand(dataset))
    except ValueError:  # its UnbalancedBracesError
        raise DataError(
            f"--dataset {dataset}: its braces do not match; write 'set/{{00000..01242}}.tar'",
            name=dataset,
        ) from None
    paths = []
    for pattern in patterns:
        if is_remote(pattern):
            paths.extend(_expand_url(pattern))
        elif glob.has_magic(pattern) and not os.path.exists(pattern):
            paths.extend(map(Path, glob.glob(pattern)))
        else:
            paths.append(Path(pattern))
    if not paths:
        raise DataError(f"--dataset {dataset} matches no file; check the pattern", name=dataset)
    return paths


def common_folder(tars: Sequence[Path]) -> str:
    """Return the absolute path of the folder that tars are in; empty if they are in several."""
    folders: set[str] = set()
    for path in tars:
        folder = path.parent
        if not is_remote(folder):
            folder = folder.absolute()
        folders.add(location_text(folder))
    if len(folders) > 1:
        return ""
    return folders.pop()


def _expand_url(url: str) -> list[Path]:
    """Return the tars of an object store that a URL names, which is listed for patterns only.

    Raises:
        DataError: If there are none.
    """
    if url.endswith(UNIT_SUFFIXES) and not glob.has_magic(url):
        return [Path(url)]
    location = url
    pattern = f"[!.]*{TAR_SUFFIX}"
    if glob.has_magic(url):
        location, pattern = split_file(url)
    names = (entry.name for entry in open_folder(location).list())
    paths: list[Path] = []
    for name in names:
        if "/" not in name and fnmatch.fnmatchcase(name, pattern):
            paths.append(Path(f"{location}/{name}"))
    if not paths:
        raise DataError(
            f"--dataset {url} matches no tar of the object store; pass "
            f"'{location}/{{00000..00999}}{TAR_SUFFIX}', or the prefix that they are under",
            name=url,
        )
    return paths


def tars_in_range(
    tars: Sequence[Path],
    tar_range: tuple[int, int] | None,
) -> list[Path]:
    """Return the tars A to B - 1 of a range A:B; of ``None``, this job's share of an array.

    In a job array of Slurm (``SLURM_ARRAY_TASK_ID``), each job gets an equal share of the tars.

    Raises:
        DataError: If the range is empty or out of bounds.
    """
    if tar_range is None:
        return list(tars[_slurm_share(len(tars))])
    first, stop = tar_range
    if not 0 <= first < stop <= len(tars):
        raise DataError(
            f"--tars {first}:{stop}: this set has the tars 0:{len(tars)}, and A:B means tars A to "
            "B - 1",
            name="tars",
        )
    return list(tars[first:stop])


def is_share(tar_range: tuple[int, int] | None) -> bool:
    """Return whether a run makes only a share of the tars."""
    return tar_range is not None or _slurm_size() > 1


def _slurm_size() -> int:
    return _whole_number("SLURM_ARRAY_TASK_COUNT", 1)


def _slurm_share(n_tars: int) -> slice:
    """Return the tars of this job of an array.

    Raises:
        DataError: If the array's numbers have gaps, as then no job would make the tars of those.
    """
    size = _slurm_size()
    if size == 1:
        return slice(0, n_tars)
    # The numbers of an array need not begin at 0, or be consecutive.
    first = _whole_number("SLURM_ARRAY_TASK_MIN", 0)
    step = _whole_number("SLURM_ARRAY_TASK_STEP", 1) or 1
    expected_last = first + (size - 1) * step
    last = _whole_number("SLURM_ARRAY_TASK_MAX", expected_last)
    number, remainder = divmod(_whole_number("SLURM_ARRAY_TASK_ID", 0) - first, step)
    if remainder or not 0 <= number < size or last != expected_last:
        raise DataError(
            f"the {size} jobs of this Slurm array have numbers from {first} to {last} with gaps, "
            "so that their shares of the tars are unknown; pass --tars A:B to each",
            name="SLURM_ARRAY_TASK_ID",
        )
    return slice(n_tars * number // size, n_tars * (number + 1) // size)


def _whole_number(
    variable: str,
    default: int,
) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        return default
    return int(text)

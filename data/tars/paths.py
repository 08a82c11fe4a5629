"""The tars of a set, as a user names them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from cusa.data.errors import DataError
from cusa.data.tars.pairs import name_of_tar

_SUFFIX = ".tar"


def are_tars(datasets: Sequence[str]) -> bool:
    """Return whether every data set is a tar, a pattern of tars, or a folder of tars."""
    return bool(datasets) and all(map(_is_tar, datasets))


def _is_tar(dataset: str) -> bool:
    if dataset.endswith((_SUFFIX, f"{_SUFFIX}}}")):
        return True
    return os.path.isdir(dataset) and any(Path(dataset).glob(f"*{_SUFFIX}"))


def expand_tars(datasets: Sequence[str]) -> list[Path]:
    """Return the tars that patterns and folders name, sorted by their names.

    Args:
        datasets: Paths of tars, with ``{00000..01242}``, ``{a,b}``, ``*`` and ``?`` as in a shell,
            and folders of tars.

    Raises:
        DataError: If a pattern matches nothing, or two tars have the same name.
    """
    paths: dict[str, Path] = {}
    for dataset in datasets:
        for path in _expand(dataset):
            name = name_of_tar(path)
            other = paths.setdefault(name, path)
            if other != path:
                raise DataError(
                    f"{other} and {path} have the same name, which the files of a set are named "
                    "after; rename one of them, or give each set a store of its own",
                    path=path,
                    name=name,
                )
    return [paths[name] for name in sorted(paths)]


def _expand(dataset: str) -> list[Path]:
    if os.path.isdir(dataset):
        return list(Path(dataset).glob(f"*{_SUFFIX}"))
    try:
        patterns = list(braceexpand(dataset))
    except ValueError:  # its UnbalancedBracesError
        raise DataError(
            f"--dataset {dataset}: its braces do not match; write 'set/{{00000..01242}}.tar'",
            name=dataset,
        ) from None
    paths: list[Path] = []
    for pattern in patterns:
        if glob.has_magic(pattern):
            paths.extend(map(Path, glob.glob(pattern)))
        else:
            paths.append(Path(pattern))
    if not paths:
        raise DataError(f"--dataset {dataset} matches no file; check the pattern", name=dataset)
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
    size = _slurm_size()
    # The numbers of an array need not begin at 0.
    number = _whole_number("SLURM_ARRAY_TASK_ID", 0) - _whole_number("SLURM_ARRAY_TASK_MIN", 0)
    if size == 1:
        return slice(0, n_tars)
    return slice(n_tars * number // size, n_tars * (number + 1) // size)


def _whole_number(
    variable: str,
    default: int,
) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        return default
    return int(text)

"""Download of a store from the Hugging Face hub; every byte is verified before it has its name."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cusa.data.errors import HubError, StoreError
from cusa.data.files import FolderLock
from cusa.data.hub import ask_hub
from cusa.data.hub_errors import one_line_hub_errors
from cusa.data.store.checksum import INDEX_FORMAT, VersionError, read_seal
from cusa.data.store.hub_repository import KIND, index_names, refuse_illegal_name
from cusa.data.store.index import read_index
from cusa.data.store.verify import require_whole, verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class ArrivalError(StoreError):
    """A pulled store is damaged or not complete."""


@dataclass(frozen=True)
class PulledStore:
    """A store from the hub, verified.

    Attributes:
        index: Its index.
        n_files: Number of its files, with the index.
        is_new: Whether it was downloaded; if not, the same store was there already.
    """

    index: Path
    n_files: int
    is_new: bool


def pull(repository: str, folder: Path, revision: str | None = None) -> PulledStore:
    """Download a store from the hub, verify every byte, and only then give it its name.

    Until then its files are in a folder ``.NAME.pull`` beside. After an interruption, and for files
    that arrived damaged, the same call downloads what is missing.

    Args:
        repository: ``"owner/name"``.
        folder: Folder of the index.
        revision: A branch, a tag or a commit; ``None``: the newest.

    Raises:
        ArrivalError: If a file arrived damaged, or the store is not complete.
        StoreError: If another store of that name is in the folder.
        HubError: If the repository holds no store, cannot be seen, or the hub does not answer.
        LockedError: If another process is pulling the same store.
    """
    from huggingface_hub import HfApi

    refuse_illegal_name(repository)
    api = HfApi()
    with one_line_hub_errors(repository):
        info = ask_hub(lambda: api.dataset_info(repository, revision=revision))
    index_name = _only_index(repository, [file.rfilename for file in info.siblings or ()])
    arrivals = folder / f".{Path(index_name).stem}.pull"
    with FolderLock(arrivals):
        _fetch(api, repository, info.sha, arrivals, [index_name])
        shard_folders = _shard_folders(repository, arrivals / index_name)
        if _is_there(folder / index_name, arrivals / index_name, shard_folders):
            n_files = require_whole(folder / index_name)
            shutil.rmtree(arrivals)
            return PulledStore(folder / index_name, n_files, is_new=False)
        _fetch(api, repository, info.sha, arrivals, shard_folders)
        n_files = _require_whole_arrival(repository, arrivals / index_name)
        _move(arrivals, folder, [*shard_folders, index_name])
    return PulledStore(folder / index_name, n_files, is_new=True)


def _fetch(
    api: HfApi,
    repository: str,
    revision: str | None,
    folder: Path,
    names: Sequence[str],
) -> None:
    """Download files and folders of a repository, but for files that have arrived."""
    patterns = []
    for name in names:
        escaped_name = glob.escape(name)
        patterns += [escaped_name, f"{escaped_name}/*"]
    with one_line_hub_errors(repository):
        api.snapshot_download(
            repository,
            repo_type=KIND,
            revision=revision,
            local_dir=folder,
            allow_patterns=patterns,
        )


def _move(
    arrivals: Path,
    folder: Path,
    names: Sequence[str],
) -> None:
    """Move a whole store to its place; its index comes last, as without it there is no store."""
    for name in names:
        (arrivals / name).rename(folder / name)
    shutil.rmtree(arrivals)


def _only_index(repository: str, files: Sequence[str]) -> str:
    names = index_names(files)
    if len(names) == 1:
        return names[0]
    problem = "holds no store (NAME.h5)"
    if names:
        problem = f"holds several stores: {', '.join(names)}"
    raise HubError(f"{repository} {problem}; pass one that cusa-store push made", name=repository)


def _shard_folders(repository: str, index: Path) -> list[str]:
    """Return the folders beside an index that hold its shards."""
    try:
        files = read_index(index).shard_files()
    except VersionError:
        raise
    except StoreError as error:
        index.unlink()
        raise _damaged_arrival(repository, index.parent, str(error)) from None
    return sorted({PurePosixPath(file).parts[0] for file in files})


def _is_there(target: Path, arrived: Path, shard_folders: Sequence[str]) -> bool:
    """Return whether the arriving store is in place already.

    Raises:
        StoreError: If another one is.
    """
    if target.exists() and read_seal(target, INDEX_FORMAT) == read_seal(arrived, INDEX_FORMAT):
        return True
    for path in (target, *(target.parent / name for name in shard_folders)):
        if path.exists():
            raise StoreError(
                f"{path} exists and is another store's; move it away, or pass another --out",
                path=path,
            )
    return False


def _require_whole_arrival(repository: str, index: Path) -> int:
    """Verify a store that has arrived; remove what is damaged, to be downloaded again.

    Returns:
        The number of its files.
    """
    n_files, damages = verify(index)
    if not damages:
        return n_files
    for damage in damages:
        damage.path.unlink(missing_ok=True)
    problem = f"{len(damages)} of {n_files} files, the first of them {damages[0].problem}"
    raise _damaged_arrival(repository, index.parent, problem)


def _damaged_arrival(repository: str, arrivals: Path, problem: str) -> ArrivalError:
    return ArrivalError(
        f"{repository} did not arrive whole ({problem}); what is whole is kept in {arrivals}: run "
        "the command again to download the others, and if that fails, push the store again",
        path=arrivals,
        name=repository,
    )

"""Upload of a store to the Hugging Face hub: a data set repository holds one, and its card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cusa.data.errors import HubError, HubTokenError, StoreError
from cusa.data.hub import ask_hub
from cusa.data.hub_errors import LOG_IN, one_line_hub_errors
from cusa.data.store.checksum import INDEX_FORMAT, read_seal
from cusa.data.store.hub_card import CARD_FILE, store_card
from cusa.data.store.hub_repository import KIND, index_names, refuse_illegal_name
from cusa.data.store.index import read_index
from cusa.data.store.verify import require_whole

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Shards per commit: an interrupted push keeps those that are committed.
_FILES_PER_COMMIT = 100


@dataclass(frozen=True)
class PushedStore:
    """A store on the hub.

    Attributes:
        url: Address of its repository.
        n_files: Number of its files, with the index.
        is_private: Whether only the owner sees it.
        has_new_card: Whether the card was written; one that was there is left as it is.
    """

    url: str
    n_files: int
    is_private: bool
    has_new_card: bool


def push(index: Path, repository: str, is_public: bool = False) -> PushedStore:
    """Verify a store, and upload it to a data set repository of the hub.

    The index is uploaded last, so that the repository never names shards that it lacks. After an
    interruption, the same call uploads what is missing.

    Args:
        index: The store's index.
        repository: ``"owner/name"``; it is made if it does not exist.
        is_public: Whether everyone may see it. A store holds the captions' texts.

    Raises:
        StoreError: If a file of the store is damaged or missing.
        HubError: If there is no access token, the hub does not answer, or the repository is
            public without ``is_public``, or holds another store.
    """
    from huggingface_hub import HfApi, get_token

    refuse_illegal_name(repository)
    if get_token() is None:
        message = f"{repository} cannot be written without an access token; {LOG_IN}"
        raise HubTokenError(message, name=repository)
    api = HfApi()
    with one_line_hub_errors(repository):
        present_files = _files_to_extend(api, repository, index, is_public)
    require_whole(index)
    shard_files = read_index(index).shard_files()
    card = None
    if CARD_FILE not in (present_files or ()):
        card = store_card(index, repository)
    with one_line_hub_errors(repository):
        if present_files is None:
            api.create_repo(repository, repo_type=KIND, private=not is_public)
        _upload_shards(api, repository, index, shard_files)
        stale_files = set(present_files or ()).difference(shard_files, [index.name])
        _upload_index(api, repository, index, card, stale_files)
        is_private = bool(api.dataset_info(repository).private)
    url = f"{api.endpoint}/datasets/{repository}"
    return PushedStore(url, 1 + len(shard_files), is_private, card is not None)


def _files_to_extend(
    api: HfApi,
    repository: str,
    index: Path,
    is_public: bool,
) -> list[str] | None:
    """Return the files of the repository, ``None`` if there is none, and refuse another's."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = ask_hub(lambda: api.dataset_info(repository))
    except GatedRepoError:  # a kind of the next one
        raise
    except RepositoryNotFoundError:
        return None
    if not info.private and not is_public:
        raise HubError(
            f"{repository} is public, and a store holds the captions' texts; pass --public, or "
            "another name",
            name=repository,
        )
    files = [sibling.rfilename for sibling in info.siblings or ()]
    for name in index_names(files):
        if name != index.name:
            raise HubError(
                f"{repository} holds another store, {name}; pass another name", name=repository
            )
    return files


def _upload_shards(
    api: HfApi,
    repository: str,
    index: Path,
    shard_files: Sequence[str],
) -> None:
    """Upload shards, but for those that are there.

    Raises:
        StoreError: If the store has changed meanwhile.
    """
    from huggingface_hub import CommitOperationAdd

    seal = read_seal(index, INDEX_FORMAT)
    for batch in _batches(shard_files):
        additions = [CommitOperationAdd(file, index.parent / file) for file in batch]
        message = f"Add {len(batch)} shards"
        api.create_commit(repository, additions, commit_message=message, repo_type=KIND)
    if read_seal(index, INDEX_FORMAT) != seal:
        raise StoreError(f"{index} has changed meanwhile; push it again", path=index)


def _batches(files: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(files)
    while batch := list(islice(remaining, _FILES_PER_COMMIT)):
        yield batch


def _upload_index(
    api: HfApi,
    repository: str,
    index: Path,
    card: str | None,
    stale_files: Iterable[str],
) -> None:
    """Upload the index, and the card if there is a new one, and remove shards of earlier pushes."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    operations.append(CommitOperationAdd(index.name, index))
    if card is not None:
        operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
    for file in stale_files:
        if file.endswith(".h5"):
            operations.append(CommitOperationDelete(file))
    message = f"Add the index {index.name}"
    api.create_commit(repository, operations, commit_message=message, repo_type=KIND)

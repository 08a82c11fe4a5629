"""How a store lies in a repository of the hub: its index at the top, its shards in folders."""

from __future__ import annotations

from collections.abc import Iterable

from cusa.data.errors import HubError
from cusa.data.hub import is_hub_name

# Of the repositories, in the hub's terms.
KIND = "dataset"


def refuse_illegal_name(repository: str) -> None:
    """Refuse what is no repository's name, ``"owner/name"``.

    Raises:
        HubError: If it is none.
    """
    if not is_hub_name(repository):
        message = f"{repository!r} is no repository's name; legal: owner/name"
        raise HubError(message, name=repository)


def index_names(files: Iterable[str]) -> list[str]:
    """Return those of a repository's files that are indexes."""
    return [name for name in files if name.endswith(".h5") and "/" not in name]

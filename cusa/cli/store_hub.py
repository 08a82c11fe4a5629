"""``cusa-store push`` and ``cusa-store pull``: stores on the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cusa.cli.console import PATH, STORE_ARGUMENT, command, quiet_libraries
from cusa.data.shell import shell_command
from cusa.screen.console import print_plain

_REPOSITORY_ARGUMENT = click.argument("repository", metavar="OWNER/NAME")


@command()
@STORE_ARGUMENT
@_REPOSITORY_ARGUMENT
@click.option(
    "--public",
    "is_public",
    is_flag=True,
    help="Let everyone see it, if the repository is new; without this, only you or your "
    "organisation. A store holds the captions' texts.",
)
def push(store_path: Path, repository: str, is_public: bool) -> None:
    """Verify STORE, and upload it to a data set repository of the hub.

    Run it again to resume, or after adding teachers or splits. It needs a token: hf auth login, or
    HF_TOKEN.
    """
    from cusa.data.store.reader import EmbeddingStore

    splits = EmbeddingStore(store_path).splits.values()
    n_captions = sum(split.n_captions for split in splits)
    n_images = sum(split.n_images for split in splits)
    print_plain(
        f"to be uploaded: the texts of {n_captions:,} captions, ids and paths of {n_images:,} "
        "images, and the teachers' embeddings; no pictures"
    )
    _quiet_libraries_in_logs()
    from cusa.data.store.hub_push import push as push_store

    pushed = push_store(store_path, repository, is_public)
    visibility = "private" if pushed.is_private else "public"
    print_plain(f"pushed: {pushed.url} ({pushed.n_files:,} files, {visibility})")
    if not pushed.has_new_card:
        print_plain("note: README.md of the repository is left as it is")


@command()
@_REPOSITORY_ARGUMENT
@click.option(
    "--out", "folder", type=PATH, default=Path("data"), help="Folder to put the store into."
)
@click.option("--revision", help="Branch, tag or commit.  [default: the newest commit]")
def pull(repository: str, folder: Path, revision: str | None) -> None:
    """Download a store from the hub, and verify every byte.

    Run it again to resume.
    """
    _quiet_libraries_in_logs()
    from cusa.data.store.hub_pull import pull as pull_store
    from cusa.data.store.reader import EmbeddingStore

    pulled = pull_store(repository, folder, revision)
    already = "" if pulled.is_new else ", was there already"
    print_plain(f"store: {pulled.index} ({pulled.n_files:,} files are whole{already})")
    image_root = EmbeddingStore(pulled.index).image_root
    if not image_root.is_dir():
        print_plain(f"note: its images were in {image_root}; pass yours as --image-root")
    next_command = shell_command("cusa-train", "--embeddings", pulled.index)
    print_plain(f"next: {next_command}")


def _quiet_libraries_in_logs() -> None:
    """Leave the hub's progress bars to terminals."""
    if not sys.stderr.isatty():
        quiet_libraries()

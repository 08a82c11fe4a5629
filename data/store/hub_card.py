"""The card of a store on the hub: a README.md that says what it holds and how to load it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cusa.data.store.summary import summarize

CARD_FILE = "README.md"


def store_card(index: Path, repository: str) -> str:
    """Return a store's card: YAML metadata, then a page.

    Args:
        index: The store's index.
        repository: The repository that it will be in, ``"owner/name"``.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    template = resources.files(__package__).joinpath("hub_card.md.jinja").read_text("utf-8")
    card_data = DatasetCardData(
        tags=["cusa", "embeddings", "image-text-retrieval"],
        # The hub's viewer cannot read HDF5.
        viewer=False,
    )
    card = DatasetCard.from_template(
        card_data,
        template_str=template,
        repository=repository,
        index_name=index.name,
        summary=summarize(index),
    )
    return str(card)

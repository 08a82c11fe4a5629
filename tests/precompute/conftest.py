"""What tests of precomputing share."""

import pytest

from tests.helpers import make_tiny_sentence, make_tiny_vit


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of an image model and of a text model; nobody may change them."""
    folder = tmp_path_factory.mktemp("models")
    return make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")


@pytest.fixture(scope="session")
def teachers(models):
    """Both as the options of a command, which reads images itself."""
    vit, words = models
    return ["--teacher", f"vit={vit}", "--teacher", f"words={words}", "--workers", "0"]

"""What tests of evaluation share."""

import shutil

import pytest

from tests.eval.tiny import make_home, make_run


@pytest.fixture(scope="session")
def _trained_home(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("home"))
    make_run(home)
    return home


@pytest.fixture(scope="module")
def home(_trained_home):
    """Tiny models, images and their annotations; nobody may change them."""
    return _trained_home


@pytest.fixture(scope="module")
def adapter(home, tmp_path_factory):
    """A run on a store of the images, whose results are this file's own."""
    return shutil.copytree(home / "runs" / "adapter", tmp_path_factory.mktemp("runs") / "adapter")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory: results of models that are no run lie below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

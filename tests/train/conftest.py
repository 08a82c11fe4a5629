"""What tests of training share."""

import pytest

from tests.helpers import make_store


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """A store of 40 training, 10 validation and 8 test images; nobody may change it."""
    return make_store(tmp_path_factory.mktemp("data") / "store")

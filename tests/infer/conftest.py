"""What the tests of commands share."""

import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder of compiled programs of a file's commands."""
    return tmp_path_factory.mktemp("programs")

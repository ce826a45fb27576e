"""The list of slow tests names tests that there are: a test that was renamed would silently be fast again."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMES = [line for line in (ROOT / "tests" / "slow.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("name", sorted({name.split("[")[0] for name in NAMES}))
def test_a_listed_test_is_there(name):
    file, function = name.split("::")
    assert f"def {function}(" in (ROOT / file).read_text()

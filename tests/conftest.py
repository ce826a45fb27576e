"""Eight fake CPU devices, an explicit 1x1 mesh around every test, and the golden models, loaded once."""

import os

# Most of the suite's time is compiling, and level 1 takes a fifth less of it; what XLA_FLAGS says goes before.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1 " + os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

from redrafter_jax.mesh import make_mesh
from tests import support

jax.set_mesh(make_mesh())


@pytest.fixture(autouse=True)
def mesh():
    jax.set_mesh(make_mesh())
    yield
    jax.set_mesh(make_mesh())


@pytest.fixture(scope="session", params=list(support.PAIRS))
def pair(request):
    """Each golden pair: (name, target, drafter)."""
    return (request.param, *support.load_pair(request.param))


@pytest.fixture(scope="session")
def mha():
    """The Vicuna-like golden pair: (target, drafter)."""
    return support.load_pair("mha_rnn")

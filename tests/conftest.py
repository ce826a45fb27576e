"""Eight fake CPU devices, an explicit 1x1 mesh around every test, and the golden models, loaded once."""

import gc
import os
import pathlib

from tests import flags

# What XLA_FLAGS says goes after ours, so that it is what counts.
os.environ["XLA_FLAGS"] = f"{flags.FASTER_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')} {flags.devices(8)}"
# scripts/accelerator.sh runs some of the tests on the device that there is.
os.environ["JAX_PLATFORMS"] = os.environ.get("TEST_PLATFORMS", "cpu")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import fingerprint
from tests import support

jax.set_mesh(make_mesh())
os.environ["XLA_FLAGS"] = flags.of_all_compilers(os.environ["XLA_FLAGS"])  # the CPU's has read them
CACHE = jax.config.jax_compilation_cache_dir


SLOW = set((pathlib.Path(__file__).parent / "slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items):
    """Marks the variants that slow.txt names."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def mesh():
    jax.set_mesh(make_mesh())
    yield
    jax.set_mesh(make_mesh())


MAX_MAPS = 25_000  # of the 65,530 that Linux gives a process; the tests of one file need a few thousand


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_leave_room_for_more():
    """Every compiled program maps memory. Where no map is left, XLA's compiler crashes the process."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True, scope="session")
def fingerprints_are_remembered_for_the_tests_alone(tmp_path_factory):
    fingerprint.CACHE_FILE = tmp_path_factory.mktemp("fingerprints") / "fingerprints.json"


@pytest.fixture(autouse=True, scope="session")
def settings_of_this_machine_are_not_read(tmp_path_factory):
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("settings"))


@pytest.fixture(autouse=True)
def compilation_cache_is_put_back():
    """`infer.generate` in this process turns it on, and a program of one test would be another's."""
    _put_back_cache()  # from what a fixture of a whole file has turned on
    yield
    _put_back_cache()


def _put_back_cache():
    jax.config.update("jax_compilation_cache_dir", CACHE)
    jax.config.update("jax_compilation_cache_max_size", -1)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session", params=list(support.PAIRS))
def pair(request):
    """Each golden pair: (name, target, drafter)."""
    return (request.param, *support.load_pair(request.param))


@pytest.fixture(scope="session")
def mha():
    """The Vicuna-like golden pair: (target, drafter)."""
    return support.load_pair("mha_rnn")

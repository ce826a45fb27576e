"""A checkpoint of 2 GB in many files is loaded without a second copy of it in the host's memory; threads change nothing else."""

import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import reading, stored, weight_files, weights
from tests.support import MODELS

ROOT = pathlib.Path(__file__).parents[2]
MEASURE = """
import pathlib, sys
import jax
from redrafter_jax.files import weights
from redrafter_jax.devices.mesh import make_mesh

def kilobytes(name):
    return next(int(line.split()[1]) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if name in line)

jax.set_mesh(make_mesh(int(sys.argv[2]), int(sys.argv[3])))
before = kilobytes("VmRSS")
target = jax.block_until_ready(weights.load_target(sys.argv[1]))
held = sum(shard.data.nbytes for leaf in jax.tree.leaves(target) for shard in leaf.addressable_shards)
print(held, (kilobytes("VmHWM") - before) * 1024)
"""


@pytest.fixture
def script(monkeypatch):
    """`docs/scripts/loading.py`."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    import loading

    yield loading
    sys.modules.pop("loading")


@pytest.mark.slow
def test_the_peak_is_at_most_15_percent_above_the_models_own_bytes(script, tmp_path, record_property):
    script.write(tmp_path)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    for mesh in (("1", "1"), ("1", "8"), ("2", "4")):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), *mesh],
            capture_output=True, text=True, check=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        held, peak = map(int, done.stdout.split())
        record_property(f"peak over the model's bytes, mesh {' x '.join(mesh)}", peak / held)
        assert held >= 1.9e9
        assert peak <= 1.15 * held


class Tasks:
    """Tasks that say when they begin; each waits until it is let go."""

    def __init__(self, sizes, hold: bool = False):
        self.sizes, self.begun, self.gone = sizes, [], threading.Event()
        if not hold:
            self.gone.set()

    def __iter__(self):
        return iter([lambda number=number: self._run(number) for number in range(len(self.sizes))])

    def _run(self, number: int) -> int:
        self.begun.append(number)
        assert self.gone.wait(10)
        time.sleep(0.001 * (number % 3))
        return number


def test_results_come_in_the_order_of_the_tasks_and_a_bounded_number_of_bytes_is_ahead():
    sizes = [3, 100, 1, 1, 1, 50, 50, 90, 2] * 8
    tasks = Tasks(sizes)
    limit, found = max(100, int(reading.MAX_SHARE_AHEAD * sum(sizes))), []
    for number in reading.in_turn(list(tasks), sizes):
        begun = [each for each in list(tasks.begun) if each > number]
        assert sum(sizes[each] for each in begun) + sizes[number] <= limit
        found.append(number)
    assert found == list(range(len(sizes))) and sorted(tasks.begun) == found


def test_several_tasks_run_at_once(monkeypatch):
    monkeypatch.setattr(reading.processes, "count_cores", lambda: 4)
    together = threading.Barrier(3)
    tasks = [*[lambda: together.wait(10)] * 3, lambda: None]
    assert len(list(reading.in_turn(tasks, [1, 1, 1, 97]))) == 4


def test_the_first_error_ends_the_reading_and_what_has_not_begun_is_left_out(monkeypatch):
    monkeypatch.setattr(reading.processes, "count_cores", lambda: 1)
    begun = []

    def task(number: int):
        begun.append(number)
        if number == 2:
            raise BadInput(f"tensor {number}")
        time.sleep(0.3 * (number == 3))  # meanwhile those behind it are left out
        return number

    found = []
    with pytest.raises(BadInput, match="tensor 2"):
        for each in reading.in_turn([lambda n=n: task(n) for n in range(100)], [1] * 100):
            found.append(each)
    assert found == [0, 1] and begun == [0, 1, 2, 3]


def test_a_reader_that_stops_ends_the_reading():
    begun = []
    tasks = [lambda n=n: begun.append(n) for n in range(1000)]
    for _ in reading.in_turn(tasks, [1] * 1000):
        break
    assert len(begun) < 200


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_and_little_can_be_read(size):
    assert list(reading.in_turn([lambda: 5] * size, [0] * size)) == [5] * size


def test_a_bar_shows_bytes_on_a_terminal_alone_and_where_there_is_something_to_wait_for(monkeypatch, capsys):
    monkeypatch.setattr(reading, "MIN_SHOWN_BYTES", 100)
    monkeypatch.setattr(reading, "BAR_DELAY_SECONDS", 0)
    shown = []
    for is_terminal, size in ((True, 4096), (True, 10), (False, 4096)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        list(reading.in_turn([lambda: None] * 4, [size] * 4))
        shown.append("loading weights" in capsys.readouterr().err)
    assert shown == [True, False, False]


@pytest.mark.parametrize("chunk", [64, 1000, 1 << 20])
def test_however_many_bytes_are_read_at_a_time_the_weights_are_the_same(chunk, monkeypatch):
    expected = weights.load_target(MODELS / "target_gqa")
    monkeypatch.setattr(stored, "CHUNK_BYTES", chunk)
    for ours, theirs in zip(jax.tree.leaves(weights.load_target(MODELS / "target_gqa")), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_that_shrinks_while_it_is_read_is_one_sentence(tmp_path, monkeypatch):
    folder, read = shutil.copytree(MODELS / "target_mha", tmp_path / "target"), weight_files.Place.read

    def shrink(self, *given, **named):
        os.truncate(self.file, self.start)
        return read(self, *given, **named)

    monkeypatch.setattr(weight_files.Place, "read", shrink)
    with pytest.raises(BadInput, match="^target: .*model.safetensors cannot be read") as caught:
        weights.load_target(folder)
    assert "\n" not in str(caught.value)

"""What cannot fit is refused before memory is asked for, with the bytes that are needed and those that are there."""

import dataclasses
import json
import pathlib
import resource
import sys

import jax
import pytest

from infer import pair
from infer.benchmark import __main__ as benchmark
from infer.generate import __main__ as generate
from infer.serve import session
from redrafter_jax.decode import prefill
from redrafter_jax.decode.policy import needs_of
from redrafter_jax.decode.request import Sampling
from redrafter_jax.decode.room import Room
from redrafter_jax.devices import memory, placement
from redrafter_jax.devices.placement import Footprint
from redrafter_jax.errors import BadInput
from redrafter_jax.model.shapes import SHAPES
from tests import support
from train import main as train
from train.distill import __main__ as distill
from train.distill import plan

GB = 10**9
SEVENTY_B = SHAPES["llama-3.1-70b"]


class Chip:
    """A device with so much memory."""

    def __init__(self, bytes_limit: int):
        self.bytes_limit = bytes_limit

    def memory_stats(self) -> dict:
        return {"bytes_limit": self.bytes_limit}


@pytest.fixture
def small_host(monkeypatch):
    monkeypatch.setattr(memory, "of_host", lambda: 12 * GB)


@pytest.mark.parametrize(
    ("more", "there", "said"),
    [
        ([], 12, "needs 301 GB of memory, and 12 GB are there; a smaller --shape or more devices would do"),
        ([], 40, "needs 301 GB of memory, and 40 GB are there; --layers 3, a smaller --shape or more devices would do"),
        (["--dtype", "bfloat16"], 40, "needs 159 GB of memory, and 40 GB are there; --layers 10, a smaller --shape or more"),
        (["--layers", "3"], 30, "there; --dtype bfloat16, --weights int8, a smaller --shape or more devices would do"),
    ],
)
def test_a_shape_that_is_too_large_is_refused_with_how_many_layers_would_fit(more, there, said, monkeypatch, capsys):
    monkeypatch.setattr(memory, "of_host", lambda: there * GB)
    assert benchmark.main(["--shape", "llama-3.1-70b", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --shape llama-3.1-70b, with its weights, its head and its cache, needs")
    assert said in error and error.count("\n") == 1


LARGE = {"num_hidden_layers": 1000, "intermediate_size": 25_600}


def test_a_target_that_is_too_large_is_refused_before_its_weights_are_read(small_host, tmp_path):
    config = json.loads((support.MODELS / "target_mha" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | LARGE))  # and no weights beside it
    with pytest.raises(BadInput, match=r"^--target in float32 needs 19.7 GB of memory, and 12 GB are there; --dtype bfloat16"):
        pair.load(str(tmp_path), None)


@pytest.mark.parametrize(
    ("rows", "less"),
    [(16, "--max-new-tokens 200, --dtype bfloat16"), (64, "--max-new-tokens 50")],
)
@pytest.mark.parametrize(("command", "fits"), [(generate, 12), (benchmark, 13)], ids=["generate", "benchmark"])
def test_a_cache_that_does_not_fit_beside_the_weights_is_refused_with_what_would(
    command, fits, rows, less, tmp_path, monkeypatch, capsys
):
    """Generating reads a prompt into a row beside those that run, so one of them fewer fits."""
    monkeypatch.setattr(memory, "of_host", lambda: 4 * GB)
    config = json.loads((support.MODELS / "target_mha" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1000}))  # and no weights beside it
    (tmp_path / "prompts.jsonl").write_text('{"token_ids": [1, 2]}\n')
    given = ["--target", tmp_path, "--drafter", support.MODELS / "drafter_mha_rnn", "--prompts", tmp_path / "prompts.jsonl"]
    given += ["--batch-size", rows, "--max-new-tokens", 400]
    given += ["--cache-dir", tmp_path / "cache"] if command is generate else ["--beams", "1x2"]
    assert command.main([*map(str, given)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --target in float32, with the cache of --batch-size {rows}, prompts of up to 2 tokens and")
    assert error.endswith(f"GB are there; --batch-size {fits}, {less}, shorter prompts or more devices would do\n")


def test_training_on_a_target_that_is_too_large_is_refused_before_anything_is_read(small_host, tmp_path):
    config = json.loads((support.MODELS / "target_mha" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | LARGE))
    recipe = dataclasses.replace(train.PRESETS["demo"](), row_length=64)
    options = train.Options(tmp_path, text=(tmp_path / "none",), output=tmp_path / "run", recipe=recipe)
    with pytest.raises(
        BadInput, match=r"needs 19.* GB of memory, and 12 GB are there; --dtype bfloat16, --weights int8, a smaller target"
    ):
        train.main(options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4), (1, 16)], ids=str)
def test_the_row_that_prompts_are_read_into_is_on_every_shard_of_rows(mesh):
    alone, too = (placement.to_decode(SEVENTY_B, None, "bfloat16", 8, 100, refills=each) for each in (False, True))
    row = 100 * placement.bytes_of_token(SEVENTY_B, "bfloat16") / min(mesh[1], SEVENTY_B.num_key_value_heads)
    assert too.bytes_per_device(*mesh) - alone.bytes_per_device(*mesh) == pytest.approx(row)
    options = distill.Options(
        pathlib.Path("target"), pathlib.Path("out.jsonl"), text=(pathlib.Path("text"),), dtype="bfloat16", batch_size=8
    )
    load = plan.load_of(options, SEVENTY_B, None)
    assert load.beside == pytest.approx(load.cache / 8) and load.beside > 0


def test_a_server_needs_room_for_it_too(monkeypatch):
    resolved = pair.Resolved(pathlib.Path("target"), SEVENTY_B, None, None, dtype="bfloat16")
    room = Room(prefill.Bucket(64, 64, 4), needs_of([Sampling()]), 4, (64,))
    # Of 3 rows, of the one beside, and of the copy that a program of 1 row holds.
    need = placement.to_decode(SEVENTY_B, None, "bfloat16", 5, room.bucket.slots).bytes_per_device(1, 1)
    monkeypatch.setattr(memory, "of_host", lambda: need)
    session.check_memory(resolved, room, 3)
    monkeypatch.setattr(memory, "of_host", lambda: need - 1)
    with pytest.raises(BadInput, match="with the cache of --batch-size 3 and --max-length"):
        session.check_memory(resolved, room, 3)
    load = placement.to_decode(SEVENTY_B, None, "bfloat16", 16, 100, refills=True, few=4)
    assert load.beside == pytest.approx(5 / 16 * load.cache)


def test_each_accelerator_holds_its_part(monkeypatch):
    load = Footprint(SEVENTY_B, size=140 * GB, cache=8 * GB)
    monkeypatch.setattr(jax, "local_devices", lambda: [Chip(16 * GB)] * 16)
    assert memory.shortage(load, (1, 8)) == (18.5 * GB, 16 * GB)
    assert memory.shortage(load, (1, 16)) is None
    with pytest.raises(BadInput, match="the model needs 18.5 GB on each device, and 16 GB are there; half, more would do"):
        memory.check(load, (1, 8), "the model", {"half": Footprint(SEVENTY_B, size=70 * GB), "less": load}, "more")


def test_devices_of_one_host_share_its_memory(small_host):
    load = Footprint(SEVENTY_B, size=8 * GB)
    assert memory.shortage(load, (1, 8)) is None and memory.shortage(load, (1, 1)) is None
    assert memory.shortage(load, (2, 4)) == (16 * GB, 12 * GB)  # the weights twice


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 7 << 30),
        ({"memory.max": "max", "memory.current": "5"}, 7 << 30),
        ({"memory.max": "1000", "memory.current": "400", "memory.stat": "anon 300\ninactive_file 100\n"}, 700),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "400", "memory/memory.stat": "x"}, 600),
        ({"memory.max": "1000", "memory.current": "4000"}, 0),
    ],
)
def test_a_host_has_what_is_free_and_what_its_control_group_leaves(files, left, tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {7 << 20} kB\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "none")
    assert memory.of_host() == left


@pytest.mark.parametrize(
    ("version", "lines", "left"),
    [
        (2, "0::/jobs/mine\n", 600),
        (2, "0::/jobs/other\n", 1000),  # of which nothing is there; its parent leaves as much
        (2, "0::/\n", None),
        (2, "0::/../mine\n", None),  # of another container
        (1, "9:cpu,cpuacct:/mine\n4:memory:/jobs/mine\n", 600),
        (1, "9:cpu,memory:/jobs\n0::/jobs/mine\n", 1000),
    ],
)
def test_the_groups_of_the_process_itself_count(version, lines, left, tmp_path, monkeypatch):
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    jobs = (tmp_path if version == 2 else tmp_path / "memory") / "jobs"
    (jobs / "mine").mkdir(parents=True)
    for folder, numbers in ((jobs, ("1500", "500")), (jobs / "mine", ("1000", "400"))):
        for name, number in zip(names, numbers, strict=True):
            (folder / name).write_text(number + "\n")
    (tmp_path / "cgroup").write_text(lines)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "cgroup")
    assert memory._of_group() == left


def test_a_system_without_limits_of_the_address_space_has_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert memory._of_address_space() is None


def test_where_nothing_says_how_much_there_is_nothing_is_refused(tmp_path, monkeypatch):
    for name in ("MEMINFO", "CGROUP", "STATM"):
        monkeypatch.setattr(memory, name, tmp_path / "none")
    assert memory.of_host() is None and memory.shortage(Footprint(SEVENTY_B, size=10**18), (1, 1)) is None


def test_a_limit_of_the_address_space_counts(tmp_path, monkeypatch):
    (tmp_path / "statm").write_text("2 1 1 1 0 1 0\n")
    monkeypatch.setattr(memory, "STATM", tmp_path / "statm")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**6, -1))
    assert memory.of_host() == 10**6 - 2 * resource.getpagesize()

"""Two processes of four devices each do what one of eight does, and where one is lost the other ends."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer import turns
from infer.distributed import LOST_EXIT_CODE, LOST_SENTENCE
from infer.generate import __main__ as generate
from infer.generate import parts
from infer.replies import Owner, ReplyFile
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import damage, weights
from redrafter_jax.model.drafter import Drafter, full
from redrafter_jax.model.target import Target, TargetConfig
from tests import groups
from tests.jsonl import write_prompts, write_talk
from tests.texts import save_tokenizer
from train import main
from train.run import log

SMALL = ["--batch", 8, "--row-length", 32, "--positions", 2, "--warmup", 2, "--log-every", 1]
CONFIG = TargetConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
)
DECODE = ["--max-new-tokens", 12, "--beam-width", 2, "--beam-length", 3, "--batch-size", 2, "--temperature", 0.7]
MAX_END_SECONDS = 120  # until a process ends that has lost another, on a slow machine


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    """A random target that eight devices divide in any way, with a tokenizer; its head is beside it."""
    folder = tmp_path_factory.mktemp("model") / "target"
    jax.set_mesh(make_mesh())
    weights.save_target(Target(jax.random.key(0), CONFIG, jnp.float32), folder)
    weights.save_drafter(Drafter(jax.random.key(1), full(CONFIG.vocab_size, CONFIG.hidden_size)), folder.parent / "drafter")
    save_tokenizer(folder, CONFIG.vocab_size)
    return folder


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> pathlib.Path:
    return write_talk(tmp_path_factory.mktemp("talk"))


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    return write_prompts(tmp_path, [[1 + n, 5, 9 + n] for n in range(7)])


def training(target, talk, run, *more) -> list[str]:
    return ["--target", *map(str, [target, "--conversations", talk, "--output", run, *SMALL, *more])]


def same(run: pathlib.Path, other: pathlib.Path) -> None:
    """The heads of two runs are equal, to the rounding of float32 sums in another order."""
    heads = [weights.load_drafter(folder / "head") for folder in (run, other)]
    for ours, theirs in zip(*map(jax.tree.leaves, heads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def decoding(target, prompts, cache) -> list:
    return ["--target", target, "--drafter", target.parent / "drafter", "--prompts", prompts, "--cache-dir", cache, *DECODE]


def is_saved(run: pathlib.Path, step: int) -> bool:
    return (run / "checkpoints").is_dir() and any(
        path.name.isdigit() and int(path.name) >= step for path in (run / "checkpoints").iterdir()
    )


def assert_lost(group: groups.Group, survivor: int, code: int) -> None:
    """It ended by itself or JAX aborted it; either way the last line says why, after the logs of libraries."""
    assert code in (LOST_EXIT_CODE, -signal.SIGABRT)
    end = time.monotonic() + MAX_END_SECONDS
    while LOST_SENTENCE not in group.err(survivor) and time.monotonic() < end:
        time.sleep(0.1)
    said = group.err(survivor)
    assert said.splitlines()[-1] == LOST_SENTENCE and said.count(LOST_SENTENCE) == 1, said


@pytest.mark.slow
def test_a_run_that_loses_a_process_ends_and_goes_on_to_the_weights_of_one_process(target, talk, tmp_path):
    steps = ["--steps", 20, "--held-out", 0, "--mesh", 4, 2]
    arguments = training(target, talk, tmp_path / "two", *steps, "--save-every", 1, "--lost-after", 20)
    with groups.Group(tmp_path / "first", "train.main", *arguments) as group:
        group.until(lambda: is_saved(tmp_path / "two", 2))
        group.kill(1)
        codes = group.wait(MAX_END_SECONDS)
        assert codes[1] == -signal.SIGKILL
        assert_lost(group, 0, codes[0])
    done = len(log.read(tmp_path / "two"))
    assert done < 20
    with groups.Group(tmp_path / "second", "train.main", *arguments) as group:
        assert group.wait() == [0, 0], group.err(0) + group.err(1)
        assert "the head is in" in group.out(0) and group.out(1) == "" and "step/s" not in group.err(1)
    assert [line["step"] for line in log.read(tmp_path / "two")] == list(range(1, 21))
    assert main.command(training(target, talk, tmp_path / "one", *steps, "--save-every", 20)) == 0
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_lost_first_process_takes_the_others_with_it_and_one_process_goes_on(target, talk, tmp_path):
    """The first process runs the service through which all talk. One process restores the checkpoint on another mesh."""
    steps = ["--steps", 20, "--held-out", 0]
    arguments = training(target, talk, tmp_path / "run", *steps, "--save-every", 1)
    with groups.Group(tmp_path / "first", "train.main", *arguments, "--mesh", 4, 2, "--lost-after", 20) as group:
        group.until(lambda: is_saved(tmp_path / "run", 2))
        group.kill(0)
        codes = group.wait(MAX_END_SECONDS)
        assert codes[0] == -signal.SIGKILL
        assert_lost(group, 1, codes[1])
    assert main.command([*arguments, "--mesh", "2", "1"]) == 0
    assert main.command(training(target, talk, tmp_path / "one", *steps, "--save-every", 20)) == 0
    same(tmp_path / "run", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_go_on_from_one_evaluate_and_are_asked_to_end_together(target, talk, tmp_path):
    """A run of one process on one device; then of two, one of which is asked to end; then of two again, to the end."""
    more = ["--held-out", 0.2, "--evaluate-every", 40, "--evaluation-rows", 8, "--steps", 40, "--save-every", 5]
    arguments = training(target, talk, tmp_path / "run", *more)
    with groups.Group(tmp_path / "alone", "train.main", *arguments, "--mesh", 1, 1, devices=1, count=1) as group:
        group.until(lambda: is_saved(tmp_path / "run", 5))
        group.kill(0)
    on_all = [*arguments, "--mesh", 8, 1]
    with groups.Group(tmp_path / "first", "train.main", *on_all) as group:
        group.until(lambda: is_saved(tmp_path / "run", 10))
        os.kill(group.processes[1].pid, signal.SIGTERM)
        assert group.wait() == [143, 143], group.err(0) + group.err(1)
        assert "stopped; the same command goes on from step" in group.out(0)
    with groups.Group(tmp_path / "second", "train.main", *on_all) as group:
        assert group.wait() == [0, 0], group.err(0) + group.err(1)
    lines = [line for line in log.read(tmp_path / "run") if "held_out_loss" in line]
    assert len(lines) == 1 and lines[0]["held_out_tokens_per_step_4x4"] >= 1
    assert main.command(training(target, talk, tmp_path / "one", *more)) == 0
    same(tmp_path / "run", tmp_path / "one")
    alone = [line for line in log.read(tmp_path / "one") if "held_out_loss" in line]
    assert lines[0]["held_out_tokens_per_step_4x4"] == pytest.approx(alone[0]["held_out_tokens_per_step_4x4"], rel=0.05)


@pytest.mark.slow
def test_two_processes_end_on_ctrl_c_and_go_on_together_from_before_a_damaged_checkpoint(target, talk, tmp_path):
    arguments = training(target, talk, tmp_path / "run", "--steps", 4000, "--save-every", 5, "--mesh", 8, 1)
    with groups.Group(tmp_path / "first", "train.main", *arguments) as group:
        group.until(lambda: is_saved(tmp_path / "run", 10))
        os.kill(group.processes[0].pid, signal.SIGINT)
        assert group.wait() == [130, 143], group.err(0) + group.err(1)
    saves = tmp_path / "run" / "checkpoints"
    *_, before, newest = damage.list_steps(saves)
    largest = max((saves / str(newest) / "train").rglob("*"), key=lambda file: file.stat().st_size)
    os.truncate(largest, 1000)
    with groups.Group(tmp_path / "second", "train.main", *arguments) as group:
        group.until(lambda: is_saved(tmp_path / "run", newest + 5))
        os.kill(group.processes[1].pid, signal.SIGTERM)
        assert group.wait() == [143, 143], group.err(0) + group.err(1)
        assert f"checkpoint {newest} in {saves} cannot be read" in group.err(0) and "cannot be read" not in group.err(1)
        assert f"going on from step {before}\n" in group.err(0)


def test_prompts_are_shared_out_and_their_replies_merged_in_order(target, prompts, tmp_path):
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    arguments = decoding(target, prompts, tmp_path / "programs")
    assert generate.main(list(map(str, [*arguments, "--output", alone]))) == 0
    lines = [json.loads(line) for line in alone.read_text().splitlines()]
    kept = alone.read_bytes().splitlines(keepends=True)[0]
    shared.write_bytes(kept + b'{"run": ')  # left by an interrupted process
    with groups.Group(tmp_path / "two", "infer.generate", *arguments, "--output", shared, devices=2) as group:
        assert group.wait() == [0, 0], group.err(0) + group.err(1)
        assert group.out(0) == group.out(1) == group.err(1) == ""
        assert "1 of 7 replies are in" in group.err(0) and "process 0: " in group.err(0)
    assert shared.read_bytes().startswith(kept)
    ours = [json.loads(line) for line in shared.read_text().splitlines()]
    for line in ours + lines:
        del line["seconds"]
    assert ours == lines
    assert sorted(path.name for path in tmp_path.glob("shared*")) == ["shared.jsonl"]


@pytest.mark.slow
def test_a_mesh_over_two_processes_decodes_the_same_tokens(target, prompts, tmp_path):
    arguments = decoding(target, prompts, tmp_path / "programs")
    assert generate.main(list(map(str, [*arguments, "--output", tmp_path / "alone.jsonl"]))) == 0
    spread = [*arguments, "--output", tmp_path / "spread.jsonl", "--mesh", 2, 2]
    with groups.Group(tmp_path / "two", "infer.generate", *spread, devices=2) as group:
        assert group.wait() == [0, 0], group.err(0) + group.err(1)
    found = [[json.loads(line)["token_ids"] for line in (tmp_path / name).read_text().splitlines()]
             for name in ("alone.jsonl", "spread.jsonl")]  # fmt: skip
    assert found[0] == found[1] and len(found[0]) == 7


@pytest.mark.slow
def test_a_mesh_that_leaves_a_process_out_is_refused_by_both(target, talk, tmp_path):
    with groups.Group(tmp_path / "two", "train.main", *training(target, talk, tmp_path / "run", "--mesh", 4, 1)) as group:
        assert group.wait() == [2, 2]
        assert "error: --mesh 4 1 should use all 8 devices of the 2 processes; 8 1, 4 2, 2 4 and 1 8 would do\n" in group.err(0)
    assert not (tmp_path / "run").exists()


def test_shares_are_whole_batches_in_turn():
    assert turns.shares_of(7, 2, 2) == [[0, 1, 4, 5], [2, 3, 6]]
    assert turns.shares_of(1, 4, 2) == [[0], []]


def test_parts_are_merged_in_order_or_not_at_all(tmp_path):
    path, runs = tmp_path / "out.jsonl", [f"run {n}" for n in range(5)]
    shares = turns.shares_of(5, 1, 2)
    for index, share in enumerate(shares):
        lines = ReplyFile(parts.part(path, index, 2), Owner.of_runs({n: runs[n] for n in share}))
        for number in share[: 1 if index else None]:
            lines.write([{"run": runs[number], "index": number}])
    with pytest.raises(BadInput, match="1-of-2 holds 1 of 2 replies"):
        parts.merge(path, runs, shares)
    assert not path.exists()
    lines.write([{"run": runs[3], "index": 3}])
    with pytest.raises(BadInput, match="0-of-2:2 belongs to another run"):
        parts.merge(path, [*runs[:2], "another", *runs[3:]], shares)
    ReplyFile(parts.part(path, 0, 3), Owner.of_runs({0: runs[0]})).write(
        [{"run": runs[0]}]
    )  # of an earlier start with three processes
    parts.merge(path, runs, shares)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]


def test_replies_are_merged_into_the_file_that_a_link_names_and_beside_files_of_others(tmp_path):
    (tmp_path / "real").mkdir()
    real, link, merged = tmp_path / "real" / "out.jsonl", tmp_path / "link", tmp_path / "real" / "out.jsonl.merged"
    real.touch()
    link.symlink_to(real)
    merged.write_text("mine")
    lines = ReplyFile(parts.part(link, 0, 1), Owner.of_runs({0: "run"}))
    lines.write([{"run": "run"}])
    parts.merge(link, ["run"], [[0]])
    assert link.is_symlink() and real.read_text() == '{"run": "run"}\n'
    assert merged.read_text() == "mine" and set((tmp_path / "real").iterdir()) == {real, merged}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--interactive"], "--interactive is for one process"),
        (["--prompts", "x", "--json"], "--json is for one process"),
        (["--prompts", "x", "--decoding", "compare"], "--decoding compare times one process"),
        (["--prompt", "a", "--output", "x"], "--prompts and --output are missing"),
        (["--prompts", "-", "--output", "x"], "--prompts and --output are missing"),
    ],
)
def test_several_processes_decode_a_file_into_a_file_and_nothing_else(more, sentence, capsys):
    assert generate.main([*more, "--distributed"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_without_an_environment_that_names_a_group_distributed_says_so(talk, target, tmp_path):
    shell = [sys.executable, "-m", "train.main", *training(target, talk, tmp_path / "run"), "--distributed"]
    ended = subprocess.run(shell, capture_output=True, text=True, cwd=groups.ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert ended.returncode == 2 and "error: --distributed: the environment names no group of processes" in ended.stderr
    assert "Traceback" not in ended.stderr

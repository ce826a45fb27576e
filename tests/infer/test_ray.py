"""On a local Ray: replicas that are killed come back and lose no request, and files of replies are those of one process.

It needs `pip install -r requirements-ray.txt`; without it only what is said of its absence is tested.
"""

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import openai
import pytest

from infer.generate import __main__ as generate
from infer.text import load_tokenizer, text_of
from infer.workers import Workers
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, weights
from tests.groups import ROOT, free_port
from tests.jsonl import write_prompts
from tests.support import MODELS
from tests.texts import with_tokenizer
from train.distill import __main__ as distill

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="pip install -r requirements-ray.txt")
HEAD = MODELS / "drafter_mha_rnn"
PROMPTS = ["def f", "import os\n", "hello", "0"]
NEW, REQUESTS, SECONDS = 40, 48, 300
KEY = "of-the-replicas"  # which the process that deploys does not have


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture
def environment(monkeypatch) -> None:
    """Of the workers: this source, one device each, and nothing sent anywhere."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("REDRAFTER_API_KEY", "")


def test_a_missing_ray_is_one_sentence_that_says_what_to_install(monkeypatch, tmp_path, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more))
    with pytest.raises(BadInput, match=r"^--ray-workers needs ray; pip install -r requirements-ray.txt, or redrafter-jax\[ray\]$"):
        Workers(2).check()
    prompts = write_prompts(tmp_path, [[1, 2]])
    assert generate.main(["--prompts", str(prompts), "--output", str(tmp_path / "out.jsonl"), "--ray-workers", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    Workers(0).check()
    with pytest.raises(BadInput, match="--ray-workers should be from 0"):
        Workers(-1).check()


@pytest.mark.parametrize("more", [[], ["--prompt", "a"], ["--json", "--prompts", "x"]])
def test_workers_decode_a_file_into_a_file(more, monkeypatch, capsys):
    monkeypatch.setattr(Workers, "check", lambda _: None)
    assert generate.main(["--ray-workers", "2", *more]) == 2
    assert capsys.readouterr().err.startswith("error: --")


def replicas() -> set[int]:
    """Process ids of the replicas of this machine."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::ServeReplica") and b"redrafter" in name:
            found.add(int(path.parent.name))
    return found


@pytest.mark.slow
@needs_ray
def test_a_replica_that_is_killed_loses_no_request_and_comes_back(target, tmp_path, environment):
    tokenizer = load_tokenizer(target)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    plain = Engine(weights.load_target(target), stop_ids=config.stop_ids(target, tokenizer, "target")).generate(
        ids, Sampling(1.0), Limits(NEW), batch=len(ids)
    )
    texts = [text_of(tokenizer, own, reply.token_ids) for own, reply in zip(ids, plain, strict=True)]
    port, before = free_port(), replicas()
    given = {
        "replicas": 2, "cpus": 0.5, "target": str(target), "drafter": str(HEAD), "model_name": "golden", "batch_size": 2,
        "max_length": 96, "max_prompt_tokens": 32, "mesh": "1 1", "logprobs": 0, "no_penalties": True, "look_ms": 5,
        "cache_dir": str(tmp_path / "programs"), "beam_width": 2, "beam_length": 2,
    }  # fmt: skip
    script = f"""
import ray, time
from ray import serve
from infer.serve.ray import app
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={{"env_vars": {{"REDRAFTER_API_KEY": "{KEY}"}}}})
serve.start(http_options={{"port": {port}}})
serve.run(app({given!r}))
print("ready", flush=True)
input()
serve.shutdown()
"""
    shell = [sys.executable, "-c", script]
    with (
        open(tmp_path / "err", "w") as err,
        subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, cwd=ROOT) as process,
    ):
        try:
            while (line := process.stdout.readline()) != "ready\n":
                assert line, (tmp_path / "err").read_text()
            first = replicas() - before
            assert len(first) == 2

            def ask(number: int, key: str = KEY) -> str:
                client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=10, timeout=SECONDS)
                seed = number % len(PROMPTS)
                return client.completions.create(model="golden", prompt=PROMPTS[seed], seed=seed, max_tokens=NEW).choices[0].text

            with pytest.raises(openai.AuthenticationError):
                ask(0, "none")
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(ask, number) for number in range(REQUESTS)]
                asked[REQUESTS // 4].result()
                killed = min(first)
                os.kill(killed, signal.SIGKILL)
                assert [each.result() for each in asked] == [texts[number % len(PROMPTS)] for number in range(REQUESTS)]
            end = time.monotonic() + SECONDS
            while len(now := replicas() - before - {killed}) < 2:
                assert time.monotonic() < end
                time.sleep(0.5)
            assert now > first - {killed} and ask(1) == texts[1]
        finally:
            process.communicate("\n", timeout=120)


def run(module: str, *arguments: object) -> str:
    """Standard error of a command that succeeds."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def lines_of(path: pathlib.Path) -> list[dict]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.mark.slow
@needs_ray
def test_a_file_of_prompts_in_two_workers_is_that_of_one_process_and_is_resumed(target, tmp_path, environment, cache):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"token_ids": [1 + n, 5, 9 + n]} for n in range(9)] + [{"turns": ["a", "b"]}, {"prompt": "x", "id": 7}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = ["--target", target, "--drafter", HEAD, "--prompts", prompts, "--batch-size", 2, "--temperature", 0.7, "--mesh", 1, 1,
           "--max-new-tokens", 12, "--beam-width", 2, "--beam-length", 2, "--cache-dir", cache]  # fmt: skip
    alone, spread = tmp_path / "alone.jsonl", tmp_path / "spread.jsonl"
    assert generate.main([*map(str, how), "--output", str(alone)]) == 0
    run("infer.generate", *how, "--output", spread, "--ray-workers", 2)
    assert lines_of(spread) == lines_of(alone) and len(lines_of(alone)) == 12
    kept = spread.read_bytes().splitlines(keepends=True)
    spread.write_bytes(kept[3] + kept[9] + b'{"run": ')  # left by an interrupted run, the first turn of a conversation with it
    assert "2 of 12 replies are in" in run("infer.generate", *how, "--output", spread, "--ray-workers", 2)
    assert lines_of(spread) == lines_of(alone) and kept[3] in spread.read_bytes()


@pytest.mark.slow
@needs_ray
def test_distillation_in_two_workers_is_that_of_one_process_and_is_resumed(target, tmp_path, environment):
    (tmp_path / "text.txt").write_text("".join(f"line {n} of a text\n" for n in range(60)))
    how = ["--target", target, "--text", tmp_path / "text.txt", "--prompt-tokens", 8, "--stride", 64, "--max-new-tokens", 10,
           "--batch-size", 3, "--mesh", 1, 1]  # fmt: skip
    alone, spread = tmp_path / "alone.jsonl", tmp_path / "spread.jsonl"
    assert distill.command([*map(str, how), "--output", str(alone)]) == 0
    run("train.distill", *how, "--output", spread, "--ray-workers", 2)
    assert spread.read_bytes() == alone.read_bytes() and spread.read_bytes().count(b"\n") > 9
    kept = spread.read_bytes().splitlines(keepends=True)
    spread.write_bytes(kept[5] + kept[2] + b'{"tok')
    run("train.distill", *how, "--output", spread, "--ray-workers", 2)
    assert spread.read_bytes() == alone.read_bytes()

"""One server of two processes: the same texts as one process's, and both end together."""

import asyncio
import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import openai
import pytest

from infer.distributed import LOST_EXIT_CODE, LOST_SENTENCE
from infer.text import load_tokenizer, text_of
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.led import BEAT_SECONDS
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import weights
from redrafter_jax.model.drafter import Drafter, full
from redrafter_jax.model.target import Target, TargetConfig
from tests import groups
from tests.texts import save_tokenizer

CONFIG = TargetConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8,
    head_dim=8, max_position_embeddings=512,
)  # fmt: skip
PROMPTS = ["def f", "import os\n", "x" * 40, "hello", "0"]
NEW = 24


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A random target that four devices divide in any way, with a tokenizer; its head is beside it."""
    folder = tmp_path_factory.mktemp("model") / "target"
    jax.set_mesh(make_mesh())
    weights.save_target(Target(jax.random.key(0), CONFIG, jnp.float32), folder)
    weights.save_drafter(Drafter(jax.random.key(1), full(CONFIG.vocab_size, CONFIG.hidden_size)), folder.parent / "drafter")
    return save_tokenizer(folder, CONFIG.vocab_size)


@pytest.fixture
def start(target, tmp_path, monkeypatch):
    """Starts both processes, and returns them and the address where the first one listens."""
    monkeypatch.setenv("REDRAFTER_API_KEY", "")
    sizes = ["--batch-size", 2, "--max-length", 128, "--max-prompt-tokens", 48, "--mesh", 2, 2, "--logprobs", 0, "--no-penalties"]
    where = ["--model-name", "small", "--port", 0, "--cache-dir", tmp_path / "programs", "--look-ms", 5]
    head = ["--drafter", target.parent / "drafter", "--beam-width", 2, "--beam-length", 2]

    def begin() -> tuple[groups.Group, str]:
        group = groups.Group(tmp_path / "two", "infer.serve", "--target", target, *head, *sizes, *where, devices=2)
        group.until(lambda: "ready after" in group.err(0))
        return group, re.search(r"on (http://\S+) ", group.err(0)).group(1)

    return begin


@pytest.mark.slow
def test_two_processes_of_two_devices_serve_the_text_of_one_and_end_together(start, target):
    tokenizer = load_tokenizer(target)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    plain = Engine(weights.load_target(target), stop_ids=[256]).generate(ids, Sampling(1.0), Limits(NEW), batch=len(ids))
    texts = [text_of(tokenizer, own, reply.token_ids) for own, reply in zip(ids, plain, strict=True)]
    (long,) = Engine(weights.load_target(target)).generate([ids[0]], Sampling(1.0), Limits(70), [0])
    stop = texts[3][6:9]
    group, url = start()

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            gone = await client.completions.create(model="small", prompt="a", max_tokens=70, stream=True)
            await anext(aiter(gone))
            asked = [{"prompt": prompt, "seed": seed, "max_tokens": NEW} for seed, prompt in enumerate(PROMPTS)]
            asked[3]["stop"] = stop
            waiting = [asyncio.ensure_future(client.completions.create(model="small", **each)) for each in asked]
            await gone.close()
            return [(await each).choices[0].text for each in waiting]

    with group:
        assert asyncio.run(ask()) == [*texts[:3], texts[3][: texts[3].index(stop)], texts[4]]
        time.sleep(1.5 * BEAT_SECONDS)  # nothing is asked, and the processes stay together
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        last = client.completions.create(
            model="small", prompt=PROMPTS[0], seed=0, max_tokens=70, stream=True, extra_body={"ignore_eos": True}
        )
        said = [next(iter(last)).choices[0].text]
        for process in group.processes:  # as a manager of containers does
            process.send_signal(signal.SIGTERM)
        said += [chunk.choices[0].text for chunk in last]
        assert "".join(said) == text_of(tokenizer, ids[0], long.token_ids) and len(said) > 2
        assert group.wait() == [0, 0], group.err(0) + group.err(1)
        assert "this process ends with process 0" in group.err(1) and "Traceback" not in group.err(0) + group.err(1)


@pytest.mark.slow
def test_a_lost_follower_ends_the_server(start):
    group, url = start()
    with group:
        os.kill(group.processes[1].pid, signal.SIGKILL)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        with pytest.raises(openai.APIError):  # a status, or a connection that is cut
            for _ in range(100):
                client.completions.create(model="small", prompt="a", max_tokens=5)
        assert group.wait()[0] in (LOST_EXIT_CODE, -signal.SIGABRT)
        assert LOST_SENTENCE in group.err(0)

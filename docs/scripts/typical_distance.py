"""How far the text of typical acceptance is from the target's, at each temperature; plain decoding with other seeds is the control.

    python -m docs.scripts.typical_distance --temperatures 0.25 0.5 0.75 1 1.25 1.5

Two figures, of many short replies of the embedded target to the first prompts of its list:

    distance   total variation between the tokens at one place of a reply and plain decoding's, mean over places and prompts; of so
               many samples it is above 0 for equal distributions too, which the control shows
    surprise   mean over tokens of -log2 p(token) minus the entropy of p, in bits, p the target's distribution at the temperature;
               0 for any text that is sampled from the target, whatever the target is
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

import infer
from infer.pair import EMBEDDED
from redrafter_jax.decode.engine import Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes
from redrafter_jax.model import attention
from redrafter_jax.model.target import Target


def main() -> None:
    """Prints a row of the table for each temperature and each way to decode."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0])
    parser.add_argument("--samples", type=int, default=512, help="replies to each prompt")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="of a reply")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--beams", type=int, nargs=2, default=[4, 4], metavar=("W", "L"))
    options = parser.parse_args()
    pair = infer.load(shape=Shape(*options.beams), ignore_eos=True)
    fast, plain = pair.engine, pair.engine.autoregressive()
    lines = (EMBEDDED / "prompts.jsonl").read_text().splitlines()[: options.prompts]
    prompts = [pair.tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]

    def decode(engine, temperature: float, rule: str, first: int) -> np.ndarray:
        """Replies ``[P, S, N]``; sample s of each prompt has the seed first + s."""
        seeds = [first + number for _ in prompts for number in range(options.samples)]
        repeated = [prompt for prompt in prompts for _ in range(options.samples)]
        sampling, limits = Sampling(temperature, rule=rule), Limits(options.tokens)
        replies = engine.generate(repeated, sampling, limits, seeds, options.batch)
        return np.array([reply.token_ids for reply in replies]).reshape(len(prompts), options.samples, options.tokens)

    print("| T | text | distance | surprise, bits |\n|---|---|---|---|")
    for temperature in options.temperatures:
        reference = decode(plain, temperature, "coupled", 0)
        others = {
            "plain, other seeds": decode(plain, temperature, "coupled", options.samples),
            "coupled, other seeds": decode(fast, temperature, "coupled", 2 * options.samples),
            "typical": decode(fast, temperature, "typical", options.samples),
        }
        for name, replies in others.items():
            distance = total_variation(reference, replies)
            with jax.set_mesh(pair.engine.runner.mesh):
                mean, error = surprise(pair.engine.target, prompts, replies, temperature, options.batch)
            print(f"| {temperature:g} | {name} | {distance:.3f} | {mean:+.3f} ± {error:.3f} |", flush=True)


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over prompts and places of half the sum of the differences of how often each token is there; ``[P, S, N]`` both."""
    found = []
    for ours, theirs in zip(one, other, strict=True):
        for mine, their in zip(ours.T, theirs.T, strict=True):
            size = 1 + max(mine.max(), their.max())
            counts = np.bincount(mine, minlength=size) / mine.size - np.bincount(their, minlength=size) / their.size
            found.append(np.abs(counts).sum() / 2)
    return float(np.mean(found))


def surprise(target: Target, prompts, replies: np.ndarray, temperature: float, batch: int) -> tuple[float, float]:
    """Bits per token by which replies ``[P, S, N]`` are less likely than the target's own would be, and the standard error."""
    excess = []
    for prompt, sampled in zip(prompts, replies, strict=True):
        tokens = np.concatenate([np.broadcast_to(prompt, (len(sampled), len(prompt))), sampled], axis=1)
        for first in range(0, len(tokens), batch):
            part = processes.put(tokens[first : first + batch].astype(np.int32), "data", None)
            excess.append(np.asarray(_excess(target, part, len(prompt), temperature)))
    means = np.concatenate(excess).mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size))


@jax.jit(static_argnums=2)
def _excess(target: Target, tokens_BT: jax.Array, start: int, temperature: float) -> jax.Array:
    """``[B, N]``: -log2 p(token) minus the entropy of p, for the tokens from ``start`` on."""
    positions_BT = jnp.arange(tokens_BT.shape[1]) + jnp.zeros_like(tokens_BT)
    hidden = target(tokens_BT, positions_BT, attention.causal(tokens_BT >= 0)).hidden[:, start - 1 : -1]
    logits = jax.sharding.reshard(target.unembed(hidden), jax.P("data", None, None))
    logs = jax.nn.log_softmax(logits / temperature)
    said = jnp.take_along_axis(logs, tokens_BT[:, start:, None], axis=-1)[..., 0]
    return (-said - -jnp.sum(jnp.exp(logs) * logs, axis=-1)) / jnp.log(2.0)


if __name__ == "__main__":
    main()

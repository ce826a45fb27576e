# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Generate: several tokens per forward pass, and the same text
#
# A small recurrent head drafts several continuations, the target model scores all of them in one pass, and what
# it agrees with is kept (*ReDrafter*, [arXiv 2403.09919](https://arxiv.org/abs/2403.09919)). The text is exactly
# the target's own, at any temperature.
#
# Run the cells from the top. Without changes they use a pair of small models of Python source that comes with the
# package, which takes a few minutes on a CPU. The last cell takes a model of yours.

# %%
# @title Install { display-mode: "form" }
# @markdown On Colab: put the address of the repository here. What is missing is installed, and the session restarts.
REPOSITORY = "git+https://github.com/OWNER/redrafter_jax"  # @param {type:"string"}

import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import time


def version(name):
    """The installed version of a distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_accelerator():
    """tpu or cuda, as the extras of the package are called; "" where there is neither."""
    if os.path.exists("/dev/nvidia0"):
        return "cuda"
    return "tpu" if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*") or version("libtpu") else ""


def find_unmet(extras):
    """The requirements of the package that this Python does not meet; the package itself where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("redrafter-jax") or []
    except importlib.metadata.PackageNotFoundError:
        return ["redrafter-jax"]
    needed = [Requirement(line) for line in lines]
    needed = [one for one in needed if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))]
    return [str(one) for one in needed if not one.specifier.contains(version(one.name) or "0", prereleases=True)]


def find_checkout(folder):
    """The checkout of the project that a folder lies in; None where there is none."""
    return next((str(one) for one in (folder, *folder.parents) if (one / "redrafter_jax" / "version.py").exists()), None)


def install_on_colab(repository):
    """Installs what is missing and restarts the session; nothing where nothing is missing."""
    extras = [name for name in (find_accelerator(), "plots", "serve") if name]
    unmet = find_unmet(extras)
    if not unmet:
        print(f"redrafter_jax {version('redrafter-jax')} and jax {version('jax')} are installed.")
        return
    if "/OWNER/" in repository:
        raise RuntimeError("Put the address of the repository into REPOSITORY, in place of OWNER, and run this cell again.")
    wanted = f"[{','.join(extras)}]"
    package = f"{repository}{wanted}" if os.path.isdir(repository) else f"redrafter-jax{wanted} @ {repository}"
    print(f"Installing, which takes a minute or two: {', '.join(unmet)}", flush=True)
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", package]).returncode:
        raise RuntimeError(f"pip could not install {package}; it says why above.")
    print("Installed. The session restarts now, which Colab may call a crash: run all cells again, from the top.", flush=True)
    time.sleep(2)  # seconds, for the line above to arrive
    os.kill(os.getpid(), 9)


def set_up(repository):
    """Makes `import redrafter_jax` work: on Colab by installing, elsewhere from the checkout that the notebook lies in."""
    if "google.colab" in sys.modules:
        install_on_colab(repository)
    elif importlib.util.find_spec("redrafter_jax") is None:
        checkout = find_checkout(pathlib.Path.cwd())
        if checkout is None:
            raise RuntimeError("This is not Colab, so nothing is installed: install redrafter_jax with pip, and start again.")
        sys.path.insert(0, checkout)


set_up(REPOSITORY)

# %%
# @title Parameters
TARGET = ""  # @param {type:"string"}
DRAFTER = ""  # @param {type:"string"}
WEIGHTS = ""  # @param ["", "int8", "fp8"]
PROMPT = "def read_lines(path):\n"  # @param {type:"string"}
MAX_NEW_TOKENS = 96  # @param {type:"integer"}
TEMPERATURE = 0.8  # @param {type:"number"}
SEED = 1  # @param {type:"integer"}
TREE_BEAMS = "4x4"  # @param {type:"string"}
FOLDER = "redrafter"  # @param {type:"string"}

# %% [markdown]
# `TARGET` and `DRAFTER` are folders, or names on the Hugging Face hub; empty, the pair that comes with the package.
# `WEIGHTS` stores the matrices of the target's layers in eight bits; empty, in bfloat16 (float32 on a CPU).
# `TREE_BEAMS` is the shape of the search in the picture below: 4 beams of 4 drafted tokens each.

# %%
# %matplotlib inline
from infer import load
from infer.display.session import begin

folder = begin(FOLDER)
pair = load(TARGET or None, DRAFTER or None, weights=WEIGHTS or None)
drafts = pair.engine.proposer.round
print(f"A round drafts {drafts.length} tokens deep, and the target scores {drafts.nodes} nodes in one pass.")

# %% [markdown]
# ## Text as it is decided
# What was drafted and accepted is tinted. Everything else is a token that the target had to choose itself, one per
# pass.

# %%
from infer.display.stream import stream

streamed = stream(pair, PROMPT, MAX_NEW_TOKENS)

# %% [markdown]
# The same from Python. The last value of a cell shows itself; `.text` is the text, `.reply` the tokens and the figures.

# %%
completion = pair.complete(PROMPT, max_new_tokens=MAX_NEW_TOKENS)
completion

# %% [markdown]
# ## The same seed, the same text, whatever drafts
# The target's choice at each position comes from its own distribution and from noise that belongs to the position.
# So drafts can change how fast a text comes, and never which text. Here one seed is decoded with the head, without
# drafts, and with *prompt lookup*, which drafts what followed the last tokens earlier in the text.

# %%
from infer.display.ways import with_proposer
from redrafter_jax import Lookup

ways = {"head": pair, "no drafts": with_proposer(pair, None), "lookup": with_proposer(pair, Lookup())}
sampled = {
    name: way.complete(PROMPT, max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, seed=SEED) for name, way in ways.items()
}
for name, one in sampled.items():
    print(f"{name:>10}: {one.reply.rounds:3} target passes for {len(one.reply.token_ids)} tokens")
print("the same tokens" if len({tuple(one.reply.token_ids) for one in sampled.values()}) == 1 else "not the same tokens")

# %% [markdown]
# In float32 the tokens are the same, always. In bfloat16, the default on a TPU, a pass over many tokens rounds
# otherwise than a pass over one, and two tokens that are almost equally likely can then change places.
# The text with the head, and another seed, which is another text:

# %%
sampled["head"]

# %%
pair.complete(PROMPT, max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, seed=SEED + 1)

# %% [markdown]
# ## Is it faster?
# Both ways in turn, several runs each. On a CPU do not expect much of the pair that comes with the package: it is
# so small that a pass over more nodes costs nearly as much more as it gains. Where the weights are read from
# memory, and that is every larger model, the passes are what counts.

# %%
from infer.generate.compare import compare_prompt
from redrafter_jax import Limits, Sampling

prompt_ids = pair.tokenizer(PROMPT)["input_ids"]
both = compare_prompt(pair.engine, prompt_ids, Sampling(), Limits(new=MAX_NEW_TOKENS))
print(both.report(pair.engine.target.norm.dtype.name))

# %% [markdown]
# ## One round, drawn
# The tree that the head drafts behind the newest token, with the head's own estimate of how likely each prefix is.
# The target scores all nodes in one pass, and the path that it agrees with becomes text.

# %%
from infer.display.rounds import fetch_trees
from infer.display.tree_plot import plot_tree
from infer.display.ways import with_shape
from infer.options import read_beam
from redrafter_jax import Recurrent, Shape

has_head = isinstance(pair.engine.proposer, Recurrent)
drawn = with_shape(pair, Shape(*read_beam(TREE_BEAMS))) if has_head else pair
trees = fetch_trees(drawn, PROMPT, rounds=4)
plot_tree(max(trees, key=lambda tree: len(tree.path)))

# %% [markdown]
# ## Serve it
# `python -m infer.serve` has OpenAI's HTTP interface. This starts it with the pair that comes with the package, asks it
# for the text of the seed above, shows that as it comes, and stops it. It computes on the CPU, because this session
# holds the TPU; on a machine of its own leave `JAX_PLATFORMS` out. It needs the extra `serve`.

# %%
import re

import infer

SMALL = ["--batch-size", "2", "--max-length", "256", "--logprobs", "0", "--no-penalties", "--settings", "none"]


def wait_for(server):
    """The address of a server as soon as it is ready, in a minute or two; None if it ended, whose reason is printed."""
    for line in server.stderr:
        found = re.search(r"ready after .* on (http://\S+)", line)
        if found:
            return found[1]
        print(line, end="")


environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(infer.__file__).parents[1])}
command = [sys.executable, "-m", "infer.serve", "--port", "0", *SMALL]  # port 0: any that is free
server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
try:
    address = wait_for(server)
    if address:
        from openai import OpenAI

        client = OpenAI(base_url=f"{address}/v1", api_key="none")
        asked = dict(model="embedded", prompt=PROMPT, max_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, seed=SEED)
        served = ""
        for event in client.completions.create(**asked, stream=True):
            served += event.choices[0].text
            print(event.choices[0].text, end="", flush=True)
        is_same = served == sampled["head"].text
        print("\n---\nthe same text as above" if is_same else "\n---\nanother text: above is another model or number format")
finally:
    server.terminate()
    print("the server ended with exit code", server.wait())

# %% [markdown]
# ## Your own model
# Any checkpoint of a supported family (Llama, Qwen, Gemma ...), by folder or hub name. Without a head of its own it drafts by
# lookup, which pays where a text repeats its prompt (editing code, quoting). A head comes from the notebook
# *train_head*. One v5e chip has 16 GB. Qwen3 0.6B, 1.7B and 4B fit in bfloat16 (1.2, 3.4 and 8 GB of weights); with
# `OWN_WEIGHTS = "int8"` Qwen3 8B and Llama-3.1 8B do, too. Which models fit, and what a step costs, is a table in
# [docs/reports/scaling.md](../docs/reports/scaling.md#what-fits-one-v5e-chip).

# %%
OWN_TARGET = ""  # @param ["", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"] {allow-input: true}
OWN_WEIGHTS = "int8"  # @param ["", "int8", "fp8"]
OWN_DRAFTER = "lookup"  # @param {type:"string"}
QUESTION = "Write this again with type hints: def add(first, second): return first + second"  # @param {type:"string"}

if OWN_TARGET:
    own = load(OWN_TARGET, OWN_DRAFTER, weights=OWN_WEIGHTS or None)
    asks = [{"role": "user", "content": QUESTION}] if own.tokenizer.chat_template else QUESTION
    stream(own, asks, MAX_NEW_TOKENS)
else:
    print("Choose a model above and run this cell.")

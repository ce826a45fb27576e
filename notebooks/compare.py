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
# # Compare: which way to draft pays, and why
#
# Beam shapes, trees, temperatures and prompt lookup on one model, each against plain decoding of the same prompts in
# turn. All of them give the same text; they differ in *tokens per step* (tokens that one pass of the target delivers)
# and in what a round costs. Run the cells from the top. Without changes they measure the pair that comes with the
# package, which takes a few minutes.

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
PROMPTS = ""  # @param {type:"string"}
PROMPT_COUNT = 4  # @param {type:"integer"}
MAX_NEW_TOKENS = 64  # @param {type:"integer"}
REPEATS = 3  # @param {type:"integer"}
BEAMS = "1x2 1x4 2x2 4x4"  # @param {type:"string"}
TREE_BEAMS = "4x4"  # @param {type:"string"}
FOLDER = "redrafter"  # @param {type:"string"}

# %% [markdown]
# - `TARGET`, `DRAFTER`: folders or hub names; empty: the pair of the package.
# - `PROMPTS`: a file of JSON lines with a `prompt` each; empty: starts of Python code.
# - `BEAMS`: shapes to try, beams x drafted tokens. On a TPU try wider ones, such as `1x4 4x4 8x5 16x4`.

# %%
# %matplotlib inline
import json
import pathlib

from infer.display.session import begin
from infer.pair import EMBEDDED

folder = begin(FOLDER)


def take_prompts(source, name, count):
    """The first prompts of a file, in a file of their own, and as texts."""
    lines = [line for line in pathlib.Path(source).read_text().splitlines() if line.strip()][:count]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name, [json.loads(line)["prompt"] for line in lines]


prompts, texts = take_prompts(PROMPTS or EMBEDDED / "prompts.jsonl", "prompts.jsonl", PROMPT_COUNT)
print(f"{len(texts)} prompts, {MAX_NEW_TOKENS} new tokens each.")

# %% [markdown]
# ## Beam shapes
# A line for each shape: tokens per step, its speed beside plain decoding's, the milliseconds of a round and of its
# stages. Everything is timed in turn, in one process, and medians are reported. In the plot the black lines are plain
# decoding.

# %%
from infer.benchmark import __main__ as benchmark


def measure(name, *options):
    """The report of infer.benchmark."""
    file = folder / f"{name}.json"
    models = ["--target", TARGET] * bool(TARGET) + ["--drafter", DRAFTER] * bool(DRAFTER)
    common = ["--max-new-tokens", MAX_NEW_TOKENS, "--repeats", REPEATS, "--output", file]
    if benchmark.main([str(option) for option in (*models, *common, *options)]):
        raise RuntimeError("This was not measured; the reason is above.")
    return json.loads(file.read_text())


shapes = measure("shapes", "--prompts", prompts, "--beams", *BEAMS.split())

# %%
from infer.display.benchmark_plots import plot_lines, plot_ways

plot_ways(shapes)

# %% [markdown]
# A way pays where its tokens per step are more than its round costs over a plain step. What a round costs depends on
# the machine: a pass over more nodes is nearly free on an accelerator, as long as it reads the weights from memory for
# longer than it computes. On this machine:

# %%
nodes = {int(count): seconds * 1e3 for count, seconds in shapes["node_seconds"].items()}
plot_lines({"a pass of the target": nodes}, "nodes of the tree", "ms", plain=nodes[1])

# %% [markdown]
# ## Trees
# `search` keeps every prefix that the beam search passed through, `beams` (the paper's) those of its final beams alone.
# The same drafting, more nodes:

# %%
from infer import load
from infer.display.ways import with_proposer, with_shape
from infer.options import read_beam
from redrafter_jax import Limits, Lookup, Sampling, Shape
from redrafter_jax.decode.reply import mean_tokens_per_step

pair = load(TARGET or None, DRAFTER or None)


def count_steps(way, texts, sampling=Sampling()):
    """Tokens per step over all prompts, decoded as one batch."""
    ids = [pair.tokenizer(text)["input_ids"] for text in texts]
    replies = way.engine.generate(ids, sampling, Limits(new=MAX_NEW_TOKENS), batch=len(ids))
    return mean_tokens_per_step(list(replies))


searching, final = [with_shape(pair, Shape(*read_beam(TREE_BEAMS), tree=kind)) for kind in ("search", "beams")]
print(f"{TREE_BEAMS}, tree search: {count_steps(searching, texts):.2f} tokens per step")
print(f"{TREE_BEAMS}, tree beams:  {count_steps(final, texts):.2f} tokens per step")

# %% [markdown]
# ## Temperatures
# The text is the target's own at every temperature. With `coupled` acceptance the head ranks its drafts with the very
# noise that the target will choose by, so they are accepted about as often as in greedy decoding; `independent` does
# not show it the noise.

# %%
import itertools

temperatures = (0.0, 0.4, 0.8, 1.2)
by_rule = {"coupled": {}, "independent": {}}
for rule, temperature in itertools.product(by_rule, temperatures):
    by_rule[rule][temperature] = count_steps(searching, texts, Sampling(temperature, rule=rule))
plot_lines(by_rule, "temperature", "tokens per step", plain=1.0)

# %% [markdown]
# ## Lookup
# Prompt lookup drafts what followed the last tokens where they stood before. It has no weights and costs next to
# nothing. It pays where a text repeats itself or its prompt, as in editing code; the small model of the package copies
# its prompt less than a model that was trained to. Lookup can draft beside the head, too: `4x4 + lookup`.

# %%
edits, edit_texts = take_prompts(EMBEDDED / "edits.jsonl", "edits.jsonl", PROMPT_COUNT)
on_edits = measure("edits", "--prompts", edits, "--beams", TREE_BEAMS, "--with", "lookup", "--nodes", 1)
plot_ways(on_edits)

# %%
looking = with_proposer(pair, Lookup())
for name, given in (("starts of code", texts), ("edits of code", edit_texts)):
    print(f"{name:>14}: lookup {count_steps(looking, given):.2f}, head {count_steps(searching, given):.2f} tokens per step")

# %% [markdown]
# ## The whole report
# Everything that was timed, with the device and the options, is in `shapes.json` and `edits.json` of the folder. The
# same from a terminal: `python -m infer.benchmark --help`.

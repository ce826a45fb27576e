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
# # Train a draft head for a model
#
# A draft head reads the last hidden state of a frozen target model and proposes the tokens to come. Training it takes
# the target, some text, and one chip. Without changes this notebook trains a head for the small model of Python source
# that comes with the package, in a few minutes, also on a CPU. Below the parameters is a table for models of up to
# 1.7 billion parameters on one v5e chip, which is what Colab offers.
#
# Run the cells from the top.

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
TARGET = ""  # @param ["", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"] {allow-input: true}
WEIGHTS = ""  # @param ["", "int8", "fp8"]
DATA = ""  # @param {type:"string"}
HEAD = "slim"  # @param ["slim", "full"]
STEPS = 200  # @param {type:"integer"}
BATCH = 8  # @param {type:"integer"}
ROW_LENGTH = 256  # @param {type:"integer"}
RATE = 0.01  # @param {type:"number"}
EVALUATE_EVERY = 50  # @param {type:"integer"}
OWN_TEXT = False  # @param {type:"boolean"}
FOLDER = "redrafter"  # @param {type:"string"}
SAVE_TO_DRIVE = False  # @param {type:"boolean"}
PUSH_TO_HUB = ""  # @param {type:"string"}

# %% [markdown]
# - `TARGET`: a folder or hub name of a model of a supported family (Llama, Qwen, Gemma ...); empty: the one of the package.
# - `WEIGHTS`: int8 or fp8 stores the matrices of the target's layers in eight bits; empty, in bfloat16 (float32 on a CPU).
#   The head learns from the target as it is stored, and is for that one.
# - `DATA`: conversations (ShareGPT, `messages` or Alpaca records) as a file or as `owner/dataset/file.json` on the
#   hub, or a folder of texts; empty: the Python source on this machine.
# - `OWN_TEXT`: first let the target answer the conversations, or continue the texts, and train on that too. It is what
#   a head has to draft, and it takes longer than the training.
# - `SAVE_TO_DRIVE`, and `PUSH_TO_HUB` (a name such as `you/my-head`): where the head goes at the end.
#
# ## Parameters for one v5e chip
#
# | model | `HEAD` | `BATCH` | `ROW_LENGTH` | `STEPS` | `RATE` | GB of 16 | with `WEIGHTS = "int8"` |
# |---|---|---|---|---|---|---|---|
# | Qwen/Qwen3-0.6B | slim | 8 | 1024 | 4000 | 0.001 | 1.8 | 1.3 |
# | Qwen/Qwen3-1.7B | slim | 8 | 1024 | 4000 | 0.001 | 4.8 | 3.4 |
# | HuggingFaceTB/SmolLM2-360M-Instruct | full | 8 | 1024 | 4000 | 0.001 | 2.8 | 2.5 |
# | TinyLlama/TinyLlama-1.1B-Chat-v1.0 | full | 8 | 1024 | 4000 | 0.001 | 5.6 | |
# | meta-llama/Llama-3.2-1B-Instruct (asks for a licence) | slim | 8 | 1024 | 4000 | 0.001 | 3.7 | 2.8 |
# | HuggingFaceTB/SmolLM2-1.7B-Instruct | slim | 8 | 1024 | 4000 | 0.001 | 4.4 | |
#
# with `DATA = "yahma/alpaca-cleaned/alpaca_data_cleaned.json"` or conversations of yours, and `EVALUATE_EVERY = 500`.
# The GB count the target in bfloat16 or int8, the head with its gradients and moments in float32, and what the loss
# keeps; what passes through the target comes on top. For the last row the TPU compiler expects 5.2 GiB and 0.26 s
# with 4 of the 8 rows on a v5e chip, so 4000 updates take about 35 minutes (`train.fit --topology v5e:2x2 --mesh 4 1
# --batch 16 --row-length 1024 --head slim`). The recipe follows the paper's for a 7B model. **None of this was run on a
# TPU yet.** None of these models needs int8 weights to fit. They leave room for longer rows, larger batches and larger
# models: Qwen3 4B with a slim head is 9.9 GB in bfloat16, and 6.2 GB in int8.

# %%
# %matplotlib inline
import pathlib

from infer.display.session import begin
from infer.pair import embedded

folder = begin(FOLDER)
target = TARGET or str(embedded("target"))
run = folder / "head-run"

# %% [markdown]
# ## Data

# %%
from huggingface_hub import hf_hub_download

from train.demo import corpus
from train.distill import __main__ as distill


def run_command(command, *arguments):
    """Runs a command of the package in this session, which holds the chip; it says itself what went wrong."""
    if command([str(argument) for argument in arguments]):
        raise RuntimeError("This did not finish; the reason is above.")


def find_data(name):
    """What train.main is to read, as its options."""
    if not name:
        run_command(corpus.command, "--output", folder / "corpus")
        return ["--text", folder / "corpus" / "train"]
    path = pathlib.Path(name)
    if not path.exists():
        owner, dataset, file = name.split("/", 2)
        path = pathlib.Path(hf_hub_download(f"{owner}/{dataset}", file, repo_type="dataset"))
    return ["--conversations" if path.suffix in (".json", ".jsonl") else "--text", path]


data, stored = find_data(DATA), ["--weights", WEIGHTS] if WEIGHTS else []
if OWN_TEXT:
    stride = ["--stride", 2048] if data[0] == "--text" else []
    run_command(distill.command, "--target", target, *stored, *data, *stride, "--output", folder / "own.jsonl")
    data += ["--token-ids", folder / "own.jsonl"]

# %% [markdown]
# ## Training
# Every `EVALUATE_EVERY` updates the head is tried on text that was held out: its loss, and the *tokens per step* of
# real decoding with it, for beams of several shapes (1x4: one beam of 4 drafted tokens). Plain decoding has 1.
#
# Interrupting this cell saves the run, and running it again resumes it. Other parameters need another `FOLDER`.

# %%
from train import main as training

options = ["--head", HEAD, "--steps", STEPS, "--batch", BATCH, "--row-length", ROW_LENGTH, "--rate", RATE]
options += ["--warmup", min(50, STEPS // 4)]
options += ["--save-every", EVALUATE_EVERY, "--evaluate-every", EVALUATE_EVERY]
run_command(training.command, "--target", target, *stored, *data, "--output", run, *options)

# %% [markdown]
# ## The curves

# %%
from IPython.display import Image

from train import plot

run_command(plot.command, "--run", run, "--output", folder / "curves.png")
Image(folder / "curves.png")

# %% [markdown]
# Tokens per step as it trained:

# %%
from train.run import log

for line in log.read(run):
    steps = [f"{name.rpartition('_')[2]} {x:.2f}" for name, x in line.items() if "tokens_per_step" in name]
    if steps:
        print(f"after {line['step']:>5} updates: {', '.join(steps)}")

# %% [markdown]
# ## Decode with it
# What the new head drafted, and the target accepted, is tinted.

# %%
from infer import load
from infer.display.stream import stream

pair = load(target, str(run / "head"), weights=WEIGHTS or None)
prompt = "def read_lines(path):\n" if not TARGET else "The best way to learn a language is"
completion = stream(pair, prompt, max_new_tokens=96)

# %%
from infer.generate.compare import compare_prompt
from redrafter_jax import Limits, Sampling

both = compare_prompt(pair.engine, pair.tokenizer(prompt)["input_ids"], Sampling(), Limits(new=96))
print(both.report(pair.engine.target.norm.dtype.name))

# %% [markdown]
# ## Keep it
# The head is a folder in the format of [apple/ml-recurrent-drafter](https://github.com/apple/ml-recurrent-drafter), with
# a model card: a few MB for the package's target, some hundred MB for a larger one. It is lost with the session unless
# it is saved.

# %%
import shutil

if SAVE_TO_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    kept = pathlib.Path("/content/drive/MyDrive/redrafter") / f"head-for-{pathlib.Path(target).name}"
    shutil.copytree(run / "head", kept, dirs_exist_ok=True)
    print(f"The head is in {kept}.")
if PUSH_TO_HUB:
    from huggingface_hub import HfApi, notebook_login

    if HfApi().token is None:
        notebook_login()
    HfApi().create_repo(PUSH_TO_HUB, exist_ok=True)
    HfApi().upload_folder(repo_id=PUSH_TO_HUB, folder_path=run / "head")
    print(f"The head is at https://huggingface.co/{PUSH_TO_HUB}.")
archive = shutil.make_archive(str(folder / "head"), "zip", run / "head")
print(f"{pathlib.Path(archive).name} is in the folder {FOLDER}, {pathlib.Path(archive).stat().st_size / 1e6:.1f} MB.")

# %% [markdown]
# Anywhere else, `load(TARGET, "the head's folder")` decodes with it, and so does
# `python -m infer.generate --target TARGET --drafter THE_FOLDER`.

"""What the options of `infer.generate` may be: first by themselves, before anything is loaded, then against the target.

Raises BadInput, one sentence that names the option. Not here: prompts, folders, the output file.
"""

from redrafter_jax.errors import BadInput

LARGEST_SEED = 2**32 - 1
COLDEST, HOTTEST = 0.01, 100.0  # below, logits over temperature leave float32; above, every text is noise
DRAFT_TOP_K = 10  # as of `redrafter_jax.decode.loop.Shape`, which would import JAX
MOST_NODES = 4096  # a round holds an N x N mask and N rows of logits

# Smallest and largest value; None is the default and always fine.
RANGES = {
    "beam_width": (1, 1024),
    "beam_length": (1, 64),
    "node_budget": (2, MOST_NODES),
    "draft_top_k": (0, 10**6),
    "top_k": (0, 10**6),
    "seed": (0, LARGEST_SEED),
    "max_new_tokens": (1, 10**7),
    "batch_size": (1, 4096),
    "max_length": (2, 10**7),
}


def alone(options) -> None:
    """Numbers out of range, and options that exclude each other."""
    for name, (low, high) in RANGES.items():
        within(options, name, low, high)
    temperature(options.temperature)
    top_p(options.top_p)
    options.group.check()
    _together(options)


def within(options, name: str, low: int, high: int) -> None:
    """A number out of its range; None is the default and always fine."""
    value = getattr(options, name)
    if value is not None and not low <= value <= high:
        raise BadInput(f"{_flag(name)} should be from {low} to {high}, not {value}{_hint(name)}")


def temperature(value: float) -> None:
    """A temperature that is neither 0 nor one at which float32 can sample."""
    if not (value == 0 or COLDEST <= value <= HOTTEST):
        raise BadInput(f"--temperature should be 0 (greedy) or from {COLDEST} to {HOTTEST:.0f}, not {value}")


def top_p(value: float) -> None:
    """A share of the probability that is none."""
    if not 0 < value <= 1:  # nor is one that is not a number
        raise BadInput(f"--top-p should be above 0 and at most 1, not {value}")


def _together(options) -> None:
    if options.prompt and options.prompts is not None:
        raise BadInput("--prompt and --prompts exclude each other; give one of them")
    if options.prompt.count("-") > 1:
        raise BadInput("--prompt - can be given once; there is one standard input")
    if options.decoding == "compare" and options.output is not None:
        raise BadInput("--output keeps replies, not comparisons; with --decoding compare use --json")
    if not options.group.is_single:
        _in_a_group(options)
    if options.target is not None and options.drafter is None and options.decoding != "autoregressive":
        raise BadInput("--drafter is missing: name the head for --target, or use --decoding autoregressive")
    if not options.interactive:
        return
    for name in ("prompt", "prompts", "output", "json"):
        if getattr(options, name):
            raise BadInput(f"--interactive takes its prompts from the terminal and cannot go with {_flag(name)}")
    if options.decoding == "compare":
        raise BadInput("--interactive decodes one way; leave out --decoding compare")
    if options.batch_size > 1:
        raise BadInput(f"--interactive decodes one prompt at a time; --batch-size should be 1, not {options.batch_size}")


def _in_a_group(options) -> None:
    """Several processes share out a file of prompts, and nothing else."""
    for name in ("interactive", "json"):
        if getattr(options, name):
            raise BadInput(f"{_flag(name)} is for one process; several decode a file of --prompts into --output")
    if options.decoding == "compare":
        raise BadInput("--decoding compare times one process; leave out --distributed and --coordinator")
    if options.prompts in (None, "-") or options.output is None:
        raise BadInput("--prompts and --output are missing: several processes decode a file of prompts into a file of replies")


def against(options, target, shape) -> None:
    """Numbers that this target (a `TargetConfig`) has no room for; ``shape`` is None for plain decoding."""
    context, vocabulary = target.max_position_embeddings, target.vocab_size
    for name in ("max_length", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and value > context:
            raise BadInput(f"{_flag(name)} should be at most the target's context of {context}, not {value}")
    for name in ("beam_width", "draft_top_k", "top_k"):
        value = getattr(options, name)
        if value is not None and value > vocabulary:
            raise BadInput(f"{_flag(name)} should be at most the target's vocabulary of {vocabulary}, not {value}")
    if shape is not None and shape.nodes > MOST_NODES:
        raise BadInput(f"--beam-width {shape.width} and --beam-length {shape.length} make {shape.nodes} nodes, over {MOST_NODES};"
                       " narrow them or give a --node-budget")  # fmt: skip
    if shape is not None and shape.length >= context:
        raise BadInput(f"--beam-length should be below the target's context of {context}, not {shape.length}")


def seeds(options, count: int) -> list[int]:
    """The seed of each prompt: --seed and its number."""
    if options.seed + count - 1 > LARGEST_SEED:
        raise BadInput(f"--seed {options.seed} leaves too few seeds for {count} prompts; at most {LARGEST_SEED - count + 1}")
    return [options.seed + index for index in range(count)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _hint(name: str) -> str:
    plain = " (for no draft at all: --decoding autoregressive)"
    return plain if name in ("beam_width", "beam_length", "node_budget") else ""

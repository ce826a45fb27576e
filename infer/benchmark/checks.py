"""What the options of `infer.benchmark` may be. Nothing here starts JAX."""

import importlib.util

from infer import drafting
from infer.options import changed, check_nodes, check_ranges, check_temperature, check_top_p, read_beams
from redrafter_jax.decode import request
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims

COMMAND = "python -m infer.benchmark"
SOFTWARE = "redrafter_jax infer.benchmark"  # as a picture names it
RANGES = {
    "repeats": (1, 1000),
    "batch_size": (1, 4096),
    "max_new_tokens": (3, 10**6),
    "prompt_length": (1, 10**6),
    "prompt_count": (1, 1000),
    "draft_top_k": request.RANGES["draft_top_k"],
    "top_k": request.RANGES["top_k"],
}
OF_A_HEAD = ("beams", "node_budget", "tree", "draft_top_k", "head", "plot")


def check(options) -> None:
    """Of the command's `Options`: numbers out of range, options that exclude each other, and files that are not its own.

    Raises:
      BadInput: one sentence that names the option.
    """
    check_ranges(RANGES, vars(options))
    drafting.check(options.drafter, options.beside, options.lookup_length, options.lookup_match)
    drafting.check_search(options.drafter, changed(options, OF_A_HEAD))
    if options.node_budget and options.node_budget < 2:
        raise BadInput(f"--node-budget should be 0 (all) or from 2 up, not {options.node_budget}")
    if any(not 0 <= rate <= 1 for rate in options.rates):
        raise BadInput(f"--rates should be from 0 to 1, not {' '.join(map(str, options.rates))}")
    check_nodes(options.nodes)
    check_temperature(options.temperature)
    check_top_p(options.top_p)
    if options.bandwidth < 0 or options.bandwidth != options.bandwidth:
        raise BadInput(f"--bandwidth should be in GB/s, or 0, not {options.bandwidth}")
    read_beams(options.beams)
    if options.shape is None and (options.rates or options.layers is not None or options.head_vocab):
        raise BadInput("--rates, --layers and --head-vocab go with --shape: real weights have their own layers, head and drafts")
    if options.shape is not None and (options.target or options.drafter or options.prompts or options.lora):
        raise BadInput("--shape has random weights and prompts; leave out --target, --lora, --drafter and --prompts")
    if options.shape is not None and options.beside is not None:
        raise BadInput("--with lookup needs real prompts and a target that reads them; leave out --shape")
    if options.shape is not None and options.against_transformers:
        raise BadInput("--against-transformers needs weights on disk; leave out --shape")
    if options.lora is not None and options.against_transformers:
        raise BadInput("--against-transformers reads the target's own files; leave it out with --lora")
    if options.weights in ("int8", "fp8") and options.against_transformers:
        raise BadInput(f"--against-transformers times the same weights, which it cannot have as --weights {options.weights}")
    if options.target is not None and options.drafter is None:
        raise BadInput("--drafter is missing: name the head for --target")
    if not 1 <= options.tokens_per_step <= 65:
        raise BadInput(f"--tokens-per-step should be from 1 (nothing accepted) to 65, not {options.tokens_per_step}")
    if options.layers is not None and options.layers < 1:
        raise BadInput(f"--layers should be 1 or more, not {options.layers}")
    if options.output is not None:
        claims.check_replaceable(options.output, "--output", is_report, "a report of infer.benchmark")
    if options.plot is not None:
        claims.check_picture(options.plot, "--plot", SOFTWARE)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise BadInput("--plot needs matplotlib (pip install matplotlib)")


def is_report(beginning: bytes) -> bool:
    """Whether a file that begins so is a report: the command stands first in it."""
    return b" ".join(beginning.split()).startswith(f'{{ "command": "{COMMAND}'.encode())

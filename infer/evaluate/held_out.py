"""The report of `infer.evaluate` along held-out text: τ of each head, how well the target predicts the text, and how often its
greedy text ends in a loop, which flatters every head. Not here: the figures (`metrics.py`), the table (`held_out_table.py`).
"""

import json
import pathlib
import sys

from infer import text_files
from infer.evaluate import held_out_table
from infer.options import check_range, name_formats, read_beams
from infer.terminal import counted
from redrafter_jax.errors import BadInput

PROMPT_TOKENS = 64  # of a context (`metrics.Prompts`)
MIN_NEW_TOKENS = 48  # a loop shows in the last 48 tokens of a reply
MAX_CONTEXTS = 100_000


def run(options) -> None:
    """Measures the heads of the command's `Options`, and prints their rows. Raises BadInput where an option is wrong."""
    shapes = read_beams(options.beams)
    check(options)
    files = files_of(options)
    import jax  # only once the options are known to be good

    from infer import notes, pair
    from infer.evaluate import metrics
    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import heads, hub, weights

    jax.set_mesh(make_mesh())
    folder = pair.embedded("target") if options.target is None else hub.locate(options.target, "--target")
    config = check_pairs(folder, options, pair.number_formats("float32", options.weights)[1])
    stream = text_files.read_stream(files, folder, config.vocab_size)
    size = sum(len(file.read_bytes()) for file in files)
    prompts, contexts = metrics.Prompts(stream, options.prompts), metrics.Prompts(stream, options.contexts)
    check_memory(config, options.new_tokens, max(length for _, length in shapes))
    count = len(options.drafter) * len(shapes) * len(options.trees)
    rows = counted(count, "row")
    note = f"reading {len(stream):,} tokens, then {options.prompts} greedy continuations, then {rows} of the table ..."
    print(note, file=sys.stderr, flush=True)
    adapter = pair.read_adapter(options.lora)
    notes.say(folder, options.drafter, name_formats("float32", config.weight_format), adapter)
    target = weights.load_target(folder, what="--target", adapter=adapter, weights=config.weight_format)
    result = {
        "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "weights": config.weight_format,
        "tokens": len(stream),
        "bits_per_byte": metrics.bits_per_byte(target, stream, size),
        "loops": metrics.loop_share(metrics.greedy_replies(target, prompts, options.new_tokens)),
        "heads": {},
    }
    say = (lambda _: None) if options.json else (lambda text: print(text, flush=True))  # rows as they are measured
    say(held_out_table.heading(result))
    for drafter in options.drafter:
        head = heads.load_head(drafter, what="--drafter")
        rows = metrics.tau_table(target, head, prompts, contexts, shapes, options.trees, options.new_tokens)
        result["heads"][str(drafter)] = rows
        say("\n".join(held_out_table.line(drafter, row) for row in rows))
    if options.json:
        print(json.dumps(result, indent=1))


def check(options) -> None:
    """Raises BadInput for options out of range."""
    for name in ("prompts", "contexts"):
        check_range(name, getattr(options, name), 1, MAX_CONTEXTS)
    if options.new_tokens < MIN_NEW_TOKENS:
        raise BadInput(f"--new-tokens should be {MIN_NEW_TOKENS} or more, not {options.new_tokens}")
    for name in options.trees:
        if name not in ("search", "beams"):
            raise BadInput(f"--trees: {name!r} should be search or beams")
    if not options.drafter or not options.text:
        raise BadInput("give at least one --drafter and one --text")


def check_pairs(folder: pathlib.Path, options, weight_format: str | None = None):
    """The target's config. Raises BadInput where the replies do not fit its context, or a head does not fit the target."""
    from redrafter_jax.files import config as configs
    from redrafter_jax.files import heads

    config = configs.target_config(configs.read_json(folder, "--target"), "--target", weight_format)
    room = config.max_position_embeddings - PROMPT_TOKENS
    if options.new_tokens > room:
        raise BadInput(
            f"--new-tokens should be at most {room}, which the target's context leaves after {PROMPT_TOKENS} tokens of a prompt,"
            f" not {options.new_tokens}"
        )
    for drafter in options.drafter:
        configs.check_pair(config, heads.read_config(drafter, "--drafter"), "--drafter")
    return config


def files_of(options) -> list[pathlib.Path]:
    """The files of --text; says which are passed over."""
    chosen = text_files.texts(options.text, options.glob)
    if chosen.binary:
        print(chosen.note(), file=sys.stderr)
    return chosen.files


def check_memory(target, new_tokens: int, length: int) -> None:
    """Raises BadInput for a target (a `TargetConfig`) that does not fit in memory with the cache of a batch of contexts;
    ``length``: drafted tokens per beam at most."""
    from infer.evaluate import metrics
    from redrafter_jax.decode import prefill
    from redrafter_jax.devices import memory, placement

    slots = prefill.bucket(PROMPT_TOKENS, new_tokens, length).slots
    load = placement.to_decode(target, None, "float32", metrics.BATCH, slots)
    shorter = placement.to_decode(
        target, None, "float32", metrics.BATCH, prefill.bucket(PROMPT_TOKENS, MIN_NEW_TOKENS, length).slots
    )
    what = f"--target in float32, with the cache of {metrics.BATCH} contexts,"
    memory.check(load, (1, 1), what, {f"--new-tokens {MIN_NEW_TOKENS}": shorter}, "a smaller target")

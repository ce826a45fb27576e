"""`python -m infer.generate`: text from a target and its draft head.

Options, their checks, and the order of things. Not here: prompts (`prompts.py`), loading (`pair.py`), files (`output.py`),
what a terminal shows (`terminal.py`), decoding (`redrafter_jax`).
"""

import dataclasses
import json
import math
import pathlib
import sys
import time
from typing import Annotated, Literal

import jax
import tyro
from tqdm import tqdm

from infer import output, pair, prompts, terminal
from redrafter_jax.decode.engine import Engine, Limits, Reply, Sampling
from redrafter_jax.decode.loop import Shape
from redrafter_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Options:
    """Generate text with speculative decoding. Without options: the embedded pair and a prompt that suits it."""

    target: str = ""
    """Folder or hub name of a Llama-family target; the embedded one if not given."""
    drafter: str = ""
    """Folder or hub name of a draft head for it, in Apple's format. A target without one decodes token by token."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A prompt; may be repeated. Without any, piped standard input is the prompt."""
    prompts: str = ""
    """JSONL file with a prompt in each line: 'prompt', 'messages' (for a chat template) or 'token_ids'."""
    interactive: bool = False
    """Converse: a chat where the tokenizer has a chat template, else completion of what was said so far."""
    output: pathlib.Path | None = None
    """JSONL file for the results; a run that was cut off goes on where it stopped."""
    json: bool = False
    """Print the results as JSON lines, and nothing else, to standard output."""
    decoding: Literal["speculative", "autoregressive", "compare"] = "speculative"
    """compare: run both, check that the tokens are the same, print both speeds."""
    beam_width: int | None = None
    """Beams W; the default depends on the device."""
    beam_length: int | None = None
    """Drafted tokens per beam L; the default depends on the device."""
    node_budget: int = 0
    """Nodes that the target scores in a pass, the root included; 0: all that there can be (1 + W·L)."""
    tree: Literal["search", "beams"] = "search"
    """search: all that the beam search kept; beams: the final beams only (the paper's)."""
    draft_top_k: int = 0
    """Cut each draft distribution to its best k, as Apple's code does with 50; 0: off."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0: off."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that make up this share of probability; 1: off."""
    acceptance: Literal["coupled", "independent", "typical"] = "coupled"
    """coupled and independent are exact; typical CHANGES the distribution (Medusa's rule)."""
    seed: int = 0
    """Prompt number i (from 0) samples with seed + i; the same seed gives the same text."""
    max_new_tokens: int = 128
    """New tokens per prompt at most."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    batch_size: int = 1
    """Prompts decoded at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and cache."""
    max_length: int = 0
    """Tokens of prompt and reply together at most; 0: the target's context."""
    mesh: tuple[int, int] = (1, 1)
    """Devices along data and model."""
    cache_dir: pathlib.Path = pathlib.Path("~/.cache/redrafter_jax")
    """Folder for compiled programs, so that the next start compiles nothing."""
    no_color: bool = False
    """Show accepted drafts like other text."""

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.acceptance)

    def shape(self, platform: str) -> Shape:
        default = pair.default_shape(platform)
        width = default.width if self.beam_width is None else self.beam_width
        length = default.length if self.beam_length is None else self.beam_length
        return Shape(width, length, self.node_budget, self.tree, self.draft_top_k)

    def text_options(self) -> dict:
        """What decides the text of a run besides its prompts."""
        names = "target drafter decoding temperature top_k top_p acceptance seed max_new_tokens ignore_eos dtype max_length"
        chosen = {name: getattr(self, name) for name in names.split()}
        if self.acceptance == "typical":
            chosen |= {name: getattr(self, name) for name in ("beam_width", "beam_length", "node_budget", "tree")}
        return chosen


def check(options: Options) -> None:
    """Raises BadInput for an option out of its range, before anything is loaded."""
    ranges = {"beam_width": (1, 1024), "beam_length": (1, 64), "node_budget": (0, 65536), "draft_top_k": (0, 10**6),
              "top_k": (0, 10**6), "seed": (0, 2**32 - 1), "max_new_tokens": (1, 10**6), "batch_size": (1, 4096),
              "max_length": (0, 10**7)}  # fmt: skip
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise BadInput(f"--{name.replace('_', '-')} should be from {low} to {high}, not {value}")
    if not (math.isfinite(options.temperature) and 0 <= options.temperature <= 100):
        raise BadInput(f"--temperature should be from 0 to 100, not {options.temperature}")
    if not 0 < options.top_p <= 1:
        raise BadInput(f"--top-p should be above 0 and at most 1, not {options.top_p}")
    if options.node_budget == 1:
        raise BadInput("--node-budget 1 leaves no room for a draft; use --decoding autoregressive, or 2 or more")
    if min(options.mesh) < 1:
        raise BadInput(f"--mesh should be two numbers from 1 up, not {options.mesh[0]} {options.mesh[1]}")
    if options.batch_size % options.mesh[0]:
        raise BadInput(f"--mesh: {options.mesh[0]} data shards do not divide --batch-size {options.batch_size}")
    if options.drafter and not options.target:
        raise BadInput("--drafter needs the --target that the head was trained for")
    if options.interactive and (options.output or options.json or options.prompts or options.prompt):
        raise BadInput("--interactive reads prompts from the terminal; leave out --prompt, --prompts, --output and --json")
    if options.output is not None:
        output.check_writable(options.output)


def main(options: Options) -> int:
    """Runs the command; returns the exit code."""
    check(options)
    given = [] if options.interactive else prompts.gather(options.prompt, options.prompts)
    if not given and options.target and not options.interactive:
        raise BadInput("--prompt: there is nothing to continue; give --prompt, --prompts or standard input")
    use_cache(options.cache_dir)
    try:
        shape = options.shape(jax.devices()[0].platform)
        loaded = pair.load(options.target, options.drafter, shape, options.dtype, options.mesh, options.ignore_eos)
    except ValueError as error:
        raise error if isinstance(error, BadInput) else BadInput(f"--mesh: {error}") from None
    context = check_against_target(options, loaded)
    if options.interactive:
        return converse(options, loaded, context)
    encoded = [prompts.encode(raw, loaded, context) for raw in given or prompts.default()]
    if options.decoding == "compare":
        return compare(options, loaded, encoded)
    return generate(options, loaded, encoded)


def check_against_target(options: Options, loaded: pair.Pair) -> int:
    """The context that prompts must fit; raises BadInput for options that the target cannot honour."""
    config, shape = loaded.engine.target.config, loaded.engine.shape
    if options.max_length > config.max_position_embeddings:
        longest = config.max_position_embeddings
        raise BadInput(f"--max-length {options.max_length} is more than the target's context of {longest}")
    if shape.width > config.vocab_size:
        raise BadInput(f"--beam-width {shape.width} is more than the vocabulary of {config.vocab_size}")
    if options.top_k > config.vocab_size:
        raise BadInput(f"--top-k {options.top_k} is more than the vocabulary of {config.vocab_size}")
    if options.decoding == "compare" and loaded.engine.drafter is None:
        raise BadInput("--decoding compare needs a --drafter to compare with")
    return options.max_length or config.max_position_embeddings


def use_cache(folder: pathlib.Path) -> None:
    """Turns JAX's persistent compilation cache on."""
    try:
        folder.expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--cache-dir: {folder} cannot be made ({error.strerror})") from None
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def generate(options: Options, loaded: pair.Pair, encoded: list[prompts.Prompt]) -> int:
    engine = loaded.engine.autoregressive() if options.decoding == "autoregressive" else loaded.engine
    run = output.run_name(options.text_options(), encoded)
    lines = output.Lines(options.output, run) if options.output else None
    first = lines.done if lines else 0
    quiet = options.json or options.output is not None or len(encoded) > 1
    if first:
        print(f"{first} of {len(encoded)} prompts are in {options.output} already", file=sys.stderr)
    began, waited, replies = time.perf_counter(), engine.compile_seconds, []
    bar = tqdm(total=len(encoded), initial=first, unit="prompt", disable=not quiet or not sys.stderr.isatty())
    for start in range(first, len(encoded), options.batch_size):
        part = encoded[start : start + options.batch_size]
        watch = terminal.Stream(loaded, terminal.wants_colour(options.no_color)) if not quiet else None
        done = run_batch(options, engine, part, start, watch)
        for index, reply in enumerate(done, start):
            line = output.record(index, run, reply, loaded)
            if lines:
                lines.write(line)
            if options.json:
                print(json.dumps(line), flush=True)
            elif quiet and not lines:
                show(encoded[index], line)
        replies += done
        bar.update(len(part))
    bar.close()
    if replies:
        compiled = engine.compile_seconds - waited
        seconds = time.perf_counter() - began - compiled
        line = terminal.closing_line(replies, seconds, engine.first_token_seconds, compiled)
        print(f"\n{line}", file=sys.stderr if options.json else sys.stdout)
    return 0


def run_batch(options: Options, engine: Engine, part, start: int, watch: terminal.Stream | None) -> list[Reply]:
    limits = Limits(options.max_new_tokens, options.max_length)
    seeds = [(options.seed + start + i) % 2**32 for i in range(len(part))]
    rounds = 1 << 30 if watch is None else 2
    progress = None
    if watch is not None and part[0].text is not None:
        print(part[0].text, end="", flush=True)
    ids = [prompt.token_ids for prompt in part]
    for progress in engine.stream(ids, options.sampling(), limits, seeds, options.batch_size, rounds):
        if watch is not None:
            watch.update(progress.replies[0], progress.done[0])
    return progress.replies


def show(prompt: prompts.Prompt, line: dict) -> None:
    text = line["text"] if line["text"] is not None else " ".join(map(str, line["token_ids"]))
    print(f"--- {prompt.origin}\n{prompt.text or ''}{text}\n")


def compare(options: Options, loaded: pair.Pair, encoded: list[prompts.Prompt]) -> int:
    """Both ways of decoding, batch by batch in turn; exit code 1 if float32 tokens differ under an exact rule."""
    engines = {"autoregressive": loaded.engine.autoregressive(), "speculative": loaded.engine}
    seconds, tokens, passes, differing = dict.fromkeys(engines, 0.0), 0, 0, []
    for start in range(0, len(encoded), options.batch_size):
        part = encoded[start : start + options.batch_size]
        found = {}
        for name, engine in engines.items():
            waited, began = engine.compile_seconds, time.perf_counter()
            found[name] = run_batch(options, engine, part, start, None)
            seconds[name] += time.perf_counter() - began - (engine.compile_seconds - waited)
        for index, (plain, fast) in enumerate(zip(*found.values(), strict=True), start):
            tokens, passes = tokens + len(plain.token_ids), passes + fast.rounds
            if plain.token_ids != fast.token_ids:
                pairs = zip(plain.token_ids, fast.token_ids, strict=False)
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(plain.token_ids), len(fast.token_ids)))
                differing.append(f"{encoded[index].origin} differs from token {at} on")
    speeds = {name: tokens / taken for name, taken in seconds.items()}
    ratio = speeds["speculative"] / speeds["autoregressive"]
    lines = {"tokens": tokens, "target_passes": passes, "tokens_per_second": speeds, "speed_up": ratio, "differing": differing}
    if options.json:
        print(json.dumps(lines))
    else:
        print(f"{tokens} tokens each; {len(differing)} of {len(encoded)} replies differ")
        print(*differing, sep="\n", end="\n" if differing else "")
        print(f"autoregressive {speeds['autoregressive']:.1f} tokens/s, speculative {speeds['speculative']:.1f} tokens/s: {ratio:.2f}x")
    return 1 if differing and options.dtype == "float32" and options.acceptance != "typical" else 0


def converse(options: Options, loaded: pair.Pair, context: int) -> int:
    """A chat, or a text that both sides add to; /reset starts over, /quit or the end of input ends it."""
    if loaded.tokenizer is None:
        raise BadInput("--interactive: the target's folder has no tokenizer")
    chat = bool(getattr(loaded.tokenizer, "chat_template", None))
    history: list[dict] = []
    print("/reset starts over, /quit ends", file=sys.stderr)
    while True:
        try:
            said = input("> ")
        except (EOFError, KeyboardInterrupt):
            return 0
        if said.strip() == "/quit":
            return 0
        if said.strip() == "/reset":
            history = []
            continue
        history.append({"role": "user", "content": said})
        text = "".join(turn["content"] for turn in history)
        raw = prompts.Raw(history, "messages", "this turn") if chat else prompts.Raw(text, "prompt", "this turn")
        try:
            prompt = dataclasses.replace(prompts.encode(raw, loaded, context), text=None)
        except BadInput as error:
            print(f"{error}; /reset starts over", file=sys.stderr)
            history.pop()
            continue
        watch = terminal.Stream(loaded, terminal.wants_colour(options.no_color))
        reply = run_batch(options, loaded.engine, [prompt] * 1, 0, watch)[0]
        print()
        history.append({"role": "assistant", "content": loaded.decode(reply.token_ids)})


def command(arguments: list[str] | None = None) -> None:
    """The command line: errors of the user's making end in one sentence and exit code 2."""
    try:
        code = main(tyro.cli(Options, description=__doc__, args=arguments))
    except BadInput as error:
        print(f"infer.generate: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


if __name__ == "__main__":
    command()

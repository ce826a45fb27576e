"""What `infer.serve` does once its options are checked: find and load the pair, compile, listen, serve, drain."""

import dataclasses
import functools
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax
import uvicorn

from infer import adapting, notes, pair, programs, proposers, settings, templates, text, tuned
from infer.completion import Pair
from infer.drafting import has_head, wanted_lookup
from infer.options import changed, check_drafted, check_tree
from infer.serve import members
from infer.serve.checks import OF_A_SEARCH, chooses_search
from infer.serve.meters import Meters
from infer.serve.orders import Orders
from infer.serve.routes import House, make_app
from infer.serve.worker import Worker
from infer.terminal import compiling
from redrafter_jax.decode import ladder
from redrafter_jax.decode.batch import stop_id_columns
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.led import Led
from redrafter_jax.decode.policy import Needs, needs_of
from redrafter_jax.decode.prefill import Bucket
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import Limits, Sampling, require, wrong_for_context
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.devices import memory, placement, processes
from redrafter_jax.errors import BadInput
from redrafter_jax.model.target import TargetConfig

MAX_LENGTH = 8192  # tokens of a row by default, where the target's context is longer
# Tokens of a prompt that a pass reads, the last number; and those that the prompt's end is filled up to, each a program of its own.
# An accelerator multiplies about 256 in the time in which it reads the weights; on a CPU each token costs (docs/decisions.md).
CPU_CHUNKS, CHUNKS = (32, 64, 128), (64, 256)
MORE_STOP_IDS = 8  # that a request may have besides the model's
PREPARED_ROUNDS = 8  # that are timed before the first request
KEEP_ALIVE_SECONDS = 60  # that an idle connection stays open


def run(options, keys: Sequence[bytes]) -> int:
    """Serves until it is asked to end; returns the exit code."""
    began = time.perf_counter()
    programs.use_cache(options.cache_dir)
    template = None if options.chat_template is None else templates.read(options.chat_template)
    listener = members.listen(lambda: bind(options.host, options.port))
    loaded, scheduler = load(options)
    name = options.model_name or options.target or "embedded"
    prepare(scheduler, loaded)
    if listener is None:
        return members.follow(scheduler)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    room = scheduler.room
    rows = f"{scheduler.rows} rows of {room.longest} tokens, prompts of at most {room.bucket.prompt}"

    def say_ready() -> None:
        print(f"ready after {time.perf_counter() - began:.1f} s: {name} on {address} ({rows})", file=sys.stderr, flush=True)

    def begin(shared: Scheduler | Led) -> int:
        house = furnish(loaded, shared, name, options, keys, template)
        return serve(house, listener, options.drain_seconds, say_ready)

    return members.lead(scheduler, begin)


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, on which nothing is listened for yet, so that whoever calls too early is refused at once.

    Raises:
      BadInput: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port} cannot be listened on ({error.strerror or error})") from None
    return found


def load(options) -> tuple[Pair, Scheduler]:
    """The pair with its weights, and its running batch, of which nothing is compiled yet.

    Raises:
      BadInput: something is missing, broken, does not fit together, or has no room.
    """
    is_plain = options.decoding == "autoregressive"
    formats = pair.number_formats(options.dtype, options.weights)
    with_head = has_head(options.drafter) and not is_plain
    found = pair.find(options.target, options.drafter if with_head else None, with_head, *formats, options.lora)
    lookup = None if is_plain else proposers.lookup_of(wanted_lookup(options.drafter, options.beside, None, None))
    shape = shape_of(options, found, lookup) if with_head else None
    length, rows = options_length(options, found), options.batch_size
    resolved = pair.plan(found, options.mesh, rows, length, proposers.drafted_length(shape, lookup), together=True)
    if with_head and not chooses_search(options):
        resolved, shape = tune(options, resolved, shape, length)
    rows = -(-rows // resolved.mesh[0]) * resolved.mesh[0]
    tokenizer = text.require_tokenizer(resolved.target, "a server of text")
    room = make_room(options, resolved.target_config, proposers.drafted_length(shape, lookup), length)
    check_memory(resolved, room, rows)
    notes.say(resolved.target, [resolved.drafter], resolved.numbers, resolved.adapter)
    if resolved.why is not None:
        processes.say(resolved.why, sys.stderr)
    others = () if options.decoding is not None or changed(options, OF_A_SEARCH) else adapting.others(shape)
    loaded = pair.fill(resolved, tokenizer, shape or Shape(), lookup=lookup, others=others)
    loaded.engine.runner.on_compile = functools.partial(compiling, True, jax.config.jax_compilation_cache_dir)
    return loaded, schedule(loaded.engine, rows, room, not options.no_prefix_reuse)


def schedule(engine: Engine, rows: int, room: Room, reuses: bool = True) -> Scheduler:
    """A running batch with room for the model's stop ids and some more, which adapts to the rows that are busy."""
    columns = stop_id_columns([[0] * (len(engine.stop_ids) + MORE_STOP_IDS)])
    return Scheduler(engine.runner, rows, dataclasses.replace(room, stop_columns=columns), reuses=reuses, adapts=True)


def options_length(options, found: pair.Resolved) -> int:
    """Tokens of prompt and reply together at most. Raises BadInput for more than the target's context."""
    context = found.target_config.max_position_embeddings
    require("--max-length", wrong_for_context(options.max_length or 0, context))
    return options.max_length or min(context, MAX_LENGTH)


def shape_of(options, found: pair.Resolved, lookup: Lookup | None) -> Shape:
    """The shape that was asked for, completed by the device's defaults. Raises BadInput for one that does not fit the pair."""
    default, head = pair.shape_of(found), found.drafter_config
    width, length = options.beam_width or default.width, options.beam_length or default.length
    check_tree(width, length, options.node_budget or 0, lookup.length if lookup else 0)
    check_drafted("--beam-width", width, found.target_config.vocab_size, head.draft_vocab, head.candidates)
    return Shape(width, length, options.node_budget or 0, draft_top_k=options.draft_top_k)


def tune(options, resolved: pair.Resolved, shape: Shape, length: int) -> tuple[pair.Resolved, Shape | None]:
    """With the head and the shape that were measured to be the fastest, or with plain decoding, where settings say so."""
    heads = tuned.heads_of(options.target, options.drafter, resolved)
    wanted = settings.Conditions(options.batch_size, length)
    found = tuned.choose(settings.source_of(options.settings), resolved, heads, wanted, may_be_plain=options.decoding is None)
    if found is None:
        return resolved, shape
    choice = found.choice
    if options.decoding is None and not choice.speculates:
        return dataclasses.replace(resolved, drafter=None, drafter_config=None), None
    other = pair.find(options.target, str(found.head), True, resolved.dtype, resolved.target_config.weight_format)
    resolved = dataclasses.replace(resolved, drafter=other.drafter, drafter_config=other.drafter_config)
    return resolved, Shape(choice.width, choice.length, choice.nodes, draft_top_k=choice.draft_top_k)


def make_room(options, target: TargetConfig, drafted: int, length: int) -> Room:
    """The most that a request may ask for, but for stop ids. drafted: L; length: tokens of prompt and reply. Raises BadInput for
    bounds that exclude each other."""
    most = min(options.logprobs, target.vocab_size)
    for name, value in (("--max-prompt-tokens", options.max_prompt_tokens), ("--max-tokens-limit", options.max_tokens_limit)):
        if (value or 1) >= length:
            raise BadInput(f"{name} should be below --max-length, {length}, not {value}")
    longest, new = options.max_prompt_tokens or length - 1, options.max_tokens_limit or length - 1
    *ends, chunk = CPU_CHUNKS if jax.default_backend() == "cpu" else CHUNKS
    bucket = Bucket(longest, new, drafted, length, options.chunk_tokens or chunk)
    return Room(bucket, needs(most, not options.no_penalties), 0, tuple(ends), options.prompt_logprobs)


def needs(logprobs: int, penalties: bool) -> Needs:
    """The ways to sample that are compiled in."""
    return dataclasses.replace(needs_of([Sampling(1.0, 1, 0.5, logprobs=logprobs)]), penalised=penalties, waits=penalties)


def check_memory(resolved: pair.Resolved, room: Room, rows: int) -> None:
    """Raises BadInput where the cache of all rows does not fit beside the weights."""

    def footprint(rows: int = rows, slots: int = room.bucket.slots, dtype: str = resolved.dtype) -> placement.Footprint:
        few = max(ladder.ladder(rows, resolved.mesh[0])[:-1], default=0) // resolved.mesh[0]
        return placement.to_decode(resolved.target_config, resolved.drafter_config, dtype, rows, slots, refills=True, few=few)

    half, fewer = room.longest // 2, max(1, rows // 2)
    ways = {
        f"--batch-size {fewer}": footprint(rows=fewer),
        f"--max-length {half}": footprint(slots=half),
        "--dtype bfloat16": footprint(dtype="bfloat16"),
    }
    what = f"--target in {resolved.dtype}, with the cache of --batch-size {rows} and --max-length {room.longest},"
    memory.check(footprint(), resolved.mesh, what, ways, "more devices")


def furnish(
    loaded: Pair, scheduler: Scheduler | Led, name: str, options, keys: Sequence[bytes] = (), template: str | None = None
) -> House:
    """Everything that the application needs."""
    room, rows = scheduler.room, scheduler.rows
    meters = Meters(name, rows * room.bucket.slots)
    worker = Worker(scheduler, options.look_ms / 1e3, options.max_queue, meters)
    kwargs = templates.read_kwargs(options.chat_template_kwargs)
    how = rows + options.max_queue, template, options.request_metrics, kwargs
    orders = Orders(loaded.engine, loaded.tokenizer, room, name, *how)
    given = options.max_seconds, tuple(keys), options.cors_origin, options.max_request_bytes
    return House(orders, worker, meters, loaded.tokenizer, room.longest, *given)


def prepare(scheduler: Scheduler, loaded: Pair) -> None:
    """Compiles everything: also what a first request, and one that is cancelled, would."""
    scheduler.prepare()
    limits = Limits(scheduler.room.bucket.new)
    (request,) = loaded.engine.requests([[0]], Sampling(1.0), limits, [0], stop_ids=[])
    ticket = scheduler.submit(request)
    scheduler.step(0)
    scheduler.cancel(ticket)
    scheduler.submit(request)
    scheduler.step(PREPARED_ROUNDS)
    scheduler.reset()


def serve(house: House, listener: socket.socket, drain_seconds: float, on_ready: Callable[[], None]) -> int:
    """Serves until SIGTERM or Ctrl-C, and then what runs; returns the exit code. ``on_ready``: called once it listens."""
    config = uvicorn.Config(
        make_app(house), log_level="warning", access_log=False, server_header=False, lifespan="on", ws="none",
        timeout_graceful_shutdown=max(1, round(drain_seconds)), timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    server = _Server(config, on_ready)
    is_broken = threading.Event()

    def end() -> None:
        is_broken.set()
        server.should_exit = True

    house.worker.on_end = end
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn drains at SIGTERM, and raises it again when it has
    server.run(sockets=[listener])
    if is_broken.is_set():
        print("error: the device failed, so the server ended; start it again", file=sys.stderr)
    return int(is_broken.is_set() or not server.started)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

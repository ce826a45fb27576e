"""Times decoding and its stages, in turn in one process. Not here: what to measure, tables, plots (each command)."""

import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import commit, loop, pack, sample, verify
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.programs import compile_programs, flatten
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Recurrent
from redrafter_jax.decode.propose.scripted import Star
from redrafter_jax.decode.propose.search import Beams
from redrafter_jax.model.target import Target

Result = TypeVar("Result")
RUNS_PER_CALL = 16  # runs of a stage in one call, so that the call's own cost is small beside them


def in_turn(runs: Mapping[Hashable, Callable[[], Result]], repeats: int) -> dict[Hashable, list[Result]]:
    """The results of ``repeats`` calls of each run, interleaved, so that a slow period of the machine slows all of them."""
    reports = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            reports[name].append(run())
    return reports


def free_programs() -> None:
    """Gives back the compiled programs that nobody holds. Each maps memory, a process of Linux has 65,530 maps, and XLA's compiler
    crashes the process when there are no more."""
    jax.clear_caches()
    gc.collect()


def clock(call: Callable[[], object]) -> float:
    """Seconds until the result of ``call`` is ready."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


@dataclasses.dataclass(frozen=True)
class DecodingProgram:
    """One way to decode, compiled for one bucket (`Programs`), the seconds of compiling, and the programs' memory."""

    target: Target
    proposer: Proposer
    start: jax.stages.Compiled
    run: jax.stages.Compiled
    compile_seconds: float

    @property
    def weights(self) -> list[jax.Array]:
        """The arrays of the target and of this proposer, which may be another than the programs were compiled with."""
        return flatten(self.target, self.proposer)

    def decode(self, inputs) -> tuple[DecodeState, float, float]:
        """The last state, and the seconds of the prefill and of the rounds."""
        weights = self.weights
        began = time.perf_counter()
        state = jax.block_until_ready(self.start(weights, *inputs))
        between = time.perf_counter()
        state = jax.block_until_ready(self.run(weights, state, jnp.int32(loop.ALL_ROUNDS), jnp.int32(loop.ALL_ROWS)))
        return state, between - began, time.perf_counter() - between

    def round_seconds(self, inputs, rounds: int) -> float:
        """Seconds per round over the first ``rounds``, which must all take place."""
        weights = self.weights
        state = jax.block_until_ready(self.start(weights, *inputs))
        return clock(lambda: self.run(weights, state, jnp.int32(rounds), jnp.int32(loop.ALL_ROWS))) / rounds

    def memory(self) -> dict[str, int]:
        """Bytes per device that the compiled rounds hold: arguments (weights, cache and the rest of the state), of which
        the state is updated in place, and temporaries."""
        analysis = self.run.memory_analysis()
        return {
            "arguments": analysis.argument_size_in_bytes,
            "updated_in_place": analysis.alias_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
        }


def build(target: Target, proposer: Proposer, inputs, bucket) -> DecodingProgram:
    """Compiles one way to decode."""
    began, target = time.perf_counter(), target.showing(proposer.features)
    programs = compile_programs(target, proposer, inputs, bucket)
    return DecodingProgram(target, proposer, programs.start, programs.run, time.perf_counter() - began)


@functools.partial(jax.jit, static_argnames="stage", donate_argnames="state")
def _repeated(stage: Callable, models, state: DecodeState, given):
    """Runs a stage `RUNS_PER_CALL` times, each depending on the one before, so that XLA can neither merge them nor move one
    out of the loop."""

    def body(_, carry):
        state, given, before = carry
        length, h, g, tokens, given, _ = jax.lax.optimization_barrier(
            (state.cache.length, state.h, state.g, state.tokens, given, before)
        )
        cache = dataclasses.replace(state.cache, length=length)
        state = dataclasses.replace(state, cache=cache, h=h, g=g, tokens=tokens)
        result = stage(*models, state, given)
        return (result, given, ()) if isinstance(result, DecodeState) else (state, given, result)

    first = jax.eval_shape(lambda s, x: stage(*models, s, x), state, given)
    empty = () if isinstance(first, DecodeState) else jax.tree.map(_zeros, first)
    return jax.lax.fori_loop(0, RUNS_PER_CALL, body, (state, given, empty))


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype, out_sharding=leaf.sharding.spec if leaf.sharding is not None else P())


def _noise(target: Target, proposer: Proposer, state: DecodeState, given):
    return sample.noise(state.policy, state.cache.length + 1, proposer.round.length + 1, target.config.vocab_size)


def _propose(target: Target, proposer: Proposer, state: DecodeState, noise_BMV) -> pack.Tree:
    return proposer.propose(target, state.view(sample.show_noise(state.policy, noise_BMV)), state.memory)[0]


def _draft(target: Target, proposer: Recurrent, state: DecodeState, noise_BMV) -> Beams:
    return proposer.draft(target, state.view(sample.show_noise(state.policy, noise_BMV)))


def _pack(target: Target, proposer: Recurrent, state: DecodeState, beams: Beams) -> pack.Tree:
    return proposer.pack(state.g, beams)


def _verify(target: Target, proposer: Proposer, state: DecodeState, given) -> verify.Verdict:
    tree, noise_BMV = given
    return verify.verify(target, tree, state.cache, state.policy, noise_BMV, proposer.round.length)


def _accept(target: Target, proposer: Proposer, state: DecodeState, given):
    return proposer.accept(state.memory, *given)


def _commit(target: Target, proposer: Proposer, state: DecodeState, verdict: verify.Verdict) -> DecodeState:
    return commit.commit(state, verdict)


def stage_seconds(program: DecodingProgram, inputs, proposer: Proposer, repeats: int) -> dict[str, float]:
    """Median seconds of each stage of a round, each measured alone on the inputs that a real first round gives it. Proposing
    is one stage, but with the recurrent head two: the search and the packing of its beams. ``proposer``: the program's, or
    one with the same memory."""
    models = (program.target, proposer)

    def fresh() -> DecodeState:
        return jax.block_until_ready(program.start(program.weights, *inputs))

    def once(stage: Callable, given):
        return jax.jit(stage)(*models, state, given)

    state = fresh()
    noise = once(_noise, None)
    tree = once(_propose, noise)
    verdict = once(_verify, (tree, noise))
    stages = {"noise": (_noise, None)} if state.policy.sampled else {}
    if isinstance(proposer, Recurrent):
        stages |= {"draft": (_draft, noise), "pack": (_pack, once(_draft, noise))}
    else:
        stages["propose"] = (_propose, noise)
    stages |= {"verify": (_verify, (tree, noise)), "commit": (_commit, verdict)}
    if jax.tree.leaves(state.memory):
        stages["accept"] = (_accept, (tree, verdict))

    def timed(name: str) -> float:
        stage, given = stages[name]
        state = fresh()
        return clock(lambda: _repeated(stage, models, state, given)) / RUNS_PER_CALL

    runs = {name: functools.partial(timed, name) for name in stages}
    in_turn(runs, 1)  # compiles
    return {name: statistics.median(seconds) for name, seconds in in_turn(runs, repeats).items()}


def pass_over(target: Target, count: int, state: DecodeState) -> Callable[[], float]:
    """Times a pass of the target over N nodes per row from this state, nothing drafted: a call returns seconds."""
    proposer = Star(count - 1) if count > 1 else Plain()
    noise = jax.jit(_noise)(target, proposer, state, None)
    tree = jax.jit(_propose)(target, proposer, state, noise)
    return lambda: _time_stage(_verify, (target, proposer), state, (tree, noise))


def proposing(target: Target, proposer: Proposer, state: DecodeState) -> Callable[[], float]:
    """Times what a proposer without memory does in a round from this state: a call returns seconds."""
    noise = jax.jit(_noise)(target, proposer, state, None)
    return lambda: _time_stage(_propose, (target, proposer), state, noise)


def _time_stage(stage: Callable, models, state: DecodeState, given) -> float:
    """Seconds of a stage. The state is copied, since what runs takes it over."""
    copied = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    return clock(lambda: _repeated(stage, models, copied, given)) / RUNS_PER_CALL


def node_curve(target: Target, inputs, bucket, counts: tuple[int, ...], rounds: int, repeats: int) -> dict[int, float]:
    """Median seconds of a round that scores N nodes and drafts nothing; N = 1 is plain decoding."""
    runs = {}
    for count in counts:
        proposer = Star(count - 1) if count > 1 else Plain()
        program = build(target, proposer, inputs, dataclasses.replace(bucket, length=proposer.round.length))
        program.round_seconds(inputs, rounds)
        runs[count] = functools.partial(program.round_seconds, inputs, rounds)
    return {count: statistics.median(seconds) for count, seconds in in_turn(runs, repeats).items()}


def pad_prompts(tokens_BT: jax.Array, length: int) -> jax.Array:
    """Prompts padded to ``length`` tokens, as one program for several batches takes them."""
    return jnp.pad(tokens_BT, ((0, 0), (0, length - tokens_BT.shape[1])))

"""The trials of `infer.benchmark`: every beam shape compiled, all of them timed in turn, and the rows of its report."""

import dataclasses
import functools
import itertools
import os
from statistics import median

import jax
import numpy as np

from infer import failures, synthetic
from infer import stages as measure
from infer.benchmark import yardstick
from infer.benchmark.cases import BenchmarkPair
from infer.benchmark.task import Rates, Way
from infer.proposers import proposer_of
from redrafter_jax.decode import metrics
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.propose.scripted import scripted
from redrafter_jax.decode.reply import tokens_per_step
from redrafter_jax.errors import BadInput

FETCHED = ("tokens", "prompt", "count", "rounds", "histogram", "scored", "failed", "limit")  # of a state that is done


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to decode: a program, and for each batch its inputs and what proposes for it; way: None for plain decoding."""

    program: measure.DecodingProgram
    inputs: list[tuple]
    proposers: list[Proposer]
    way: Way | None = None
    rates: tuple[float, ...] = ()

    def decode(self, batch: int) -> "Outcome":
        """Decodes a batch; raises BadInput where a reply ends in an error, since its time says nothing."""
        program = dataclasses.replace(self.program, proposer=self.proposers[batch])
        state, prefill_seconds, round_seconds = program.decode(self.inputs[batch])
        host = jax.device_get({name: getattr(state, name) for name in FETCHED})
        failed, limit = host.pop("failed"), host.pop("limit")
        if failed.any():
            raise BadInput(failures.sentence(int(failed.sum()), int((limit > 0).sum())))
        return Outcome(prefill_seconds, round_seconds, **host)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A batch decoded once: how long the prefill and all rounds took, and the arrays of `DecodeState` of these names."""

    prefill_seconds: float
    round_seconds: float
    tokens: np.ndarray
    prompt: np.ndarray
    count: np.ndarray
    rounds: np.ndarray
    histogram: np.ndarray
    scored: np.ndarray

    @property
    def replies(self) -> list[np.ndarray]:
        """The new tokens of each row."""
        rows = zip(self.tokens, self.prompt, self.count, strict=True)
        return [tokens[prompt : prompt + count] for tokens, prompt, count in rows]

    @property
    def decoded(self) -> int:
        """Tokens that the rounds made; each row's first one comes from the prefill."""
        return int(np.sum(np.maximum(self.count - 1, 0)))

    @property
    def seconds_per_token(self) -> float:
        return self.round_seconds / self.decoded


Trials = list[list[Outcome]]
"""Of one case: for each batch, each repeat."""


def plain_case(subject: BenchmarkPair) -> Case:
    """Plain decoding, compiled and run once."""
    inputs, bucket = subject.prepare(Plain())
    program = measure.build(subject.target, Plain(), inputs[0], bucket)
    return Case(program, inputs, [Plain()] * len(inputs))


def case(subject: BenchmarkPair, way: Way, plain: Case, rates: tuple[float, ...]) -> Case:
    """Speculative decoding one way, compiled; ``rates``, one per depth, where the acceptance is synthetic."""
    drafts = proposer_of(subject.drafter if way.shape else None, way.shape or Shape(), way.lookup)
    if way.shape and drafts.round.nodes > subject.config.vocab_size:
        raise BadInput(f"--beams {way.name} has more nodes than the vocabulary of {subject.config.vocab_size}")
    inputs, bucket = subject.prepare(drafts)
    proposers: list[Proposer] = [drafts] * len(inputs)
    if rates:
        proposers = [scripted(drafts, plain.decode(batch).tokens, rates) for batch in range(len(inputs))]
    program = measure.build(subject.target, proposers[0], inputs[0], bucket)
    return Case(program, inputs, proposers, way, rates)


def run_all(cases: list[Case], repeats: int) -> list[Trials]:
    """Every case on every batch, ``repeats`` times, one case after the other."""
    batches = range(len(cases[0].inputs))
    for each in cases:  # the first call of a program is slower than later ones
        each.decode(0)
    trials: list[Trials] = [[[] for _ in batches] for _ in cases]
    for _, batch, (number, each) in itertools.product(range(repeats), batches, enumerate(cases)):
        trials[number][batch].append(each.decode(batch))
    return trials


def seconds_per_token(trials: Trials) -> list[float]:
    """Of each batch, the median over repeats."""
    return [median(outcome.seconds_per_token for outcome in batch) for batch in trials]


def plain_row(subject: BenchmarkPair, plain: Case, trials: Trials, bandwidth: float, repeats: int) -> dict:
    """The cost of plain decoding, and the rate at which it reads the weights, beside the given bandwidth or a sum over the
    weights."""
    per_round = median(seconds_per_token(trials)) * len(subject.batches[0])
    state = jax.block_until_ready(plain.program.start(plain.program.weights, *plain.inputs[0]))
    bytes_ = yardstick.round_bytes(subject.target, state)
    return {
        "tokens_per_second": 1 / median(seconds_per_token(trials)),
        "round_seconds": per_round,
        "first_token_seconds": median(outcome.prefill_seconds for batch in trials for outcome in batch),
        "round_bytes": bytes_,
        "read_rate": bytes_ / per_round,
        "yardstick_rate": bandwidth * 1e9 or yardstick.sum_rate(subject.target, max(repeats, 5)),
        "yardstick": "given" if bandwidth else "a sum over all weights",
        **_costs(plain),
    }


def row(subject: BenchmarkPair, each: Case, trials: Trials, plain: Trials, repeats: int) -> dict:
    """What one way gives, beside plain decoding of the same prompts."""
    ratios = [slow / fast for slow, fast in zip(seconds_per_token(plain), seconds_per_token(trials), strict=True)]
    histogram = sum(batch[0].histogram.sum(axis=0) for batch in trials)
    scored = np.concatenate([batch[0].scored.ravel() for batch in trials])
    rounds = [median(o.round_seconds for o in batch) / batch[0].rounds.max() for batch in trials]
    plain_round = median(seconds_per_token(plain)) * len(subject.batches[0])
    result = {
        "shape": each.way.name,
        "nodes": each.proposers[0].round.nodes,
        "tree": each.way.shape.tree if each.way.shape else "lookup",
        "tokens_per_step": _tokens_per_step([batch[0] for batch in trials]),
        "accepted_histogram": histogram.tolist(),
        "metrics": {"speculative_decoding": metrics.speculative_decoding(histogram.tolist(), scored.tolist())},
        "tokens_per_second": 1 / median(seconds_per_token(trials)),
        "speedup": median(ratios),
        "speedup_from_to": [min(ratios), max(ratios)],
        "identical": sum(_same(batch[0], other[0]) for batch, other in zip(trials, plain, strict=True)),
        "rows": sum(map(len, subject.batches)),
        "round_seconds": median(rounds),
        "round_over_autoregressive": median(rounds) / plain_round,
        "stage_seconds": stages(each, repeats),
        **_costs(each),
    }
    if each.rates:
        result |= {"rates": list(each.rates), "expected_tokens_per_step": synthetic.expected(each.rates)}
    return result


def _tokens_per_step(outcomes: list[Outcome]) -> float | None:
    counts = np.concatenate([outcome.count for outcome in outcomes])
    rounds = sum(int(outcome.rounds.sum()) for outcome in outcomes)
    return tokens_per_step(int(counts.sum()), int((counts > 0).sum()), rounds)


def _same(one: Outcome, other: Outcome) -> int:
    """The number of rows with the same tokens; a row that pads the batch does not count."""
    pairs = zip(one.replies, other.replies, strict=True)
    return sum(bool(len(a)) and a.tolist() == b.tolist() for a, b in pairs)


def stages(each: Case, repeats: int) -> dict[str, float]:
    """Median seconds of draft, pack, verify, commit (and the noise, where there is any)."""
    proposer = each.proposers[0].drafts if each.rates else each.proposers[0]
    return measure.stage_seconds(each.program, each.inputs[0], proposer, max(repeats, 3))


def _costs(each: Case) -> dict:
    return {"compile_seconds": each.program.compile_seconds, "memory_bytes": each.program.memory()}


def node_curve(subject: BenchmarkPair, counts: tuple[int, ...], repeats: int) -> dict[int, float]:
    """Seconds of a pass over N nodes per row, for each N that leaves room for a few rounds."""
    inputs, bucket = subject.prepare(Plain())
    rounds = min(32, (subject.limits.new - 1) // 2)
    return measure.node_curve(subject.target, inputs[0], bucket, counts, max(1, rounds), max(repeats, 3))


def against(subject: BenchmarkPair, plain: Case, theirs, repeats: int) -> dict:
    """Plain greedy decoding by our loop and by transformers, in turn, prefill included, prompt by prompt."""
    if subject.sampling.temperature > 0 or len(subject.batches[0]) > 1:
        raise BadInput("--against-transformers compares greedy decoding of one prompt at a time: --temperature 0, --batch-size 1")
    new, ratios, ours_all, theirs_all, same = subject.limits.new, [], [], [], 0
    theirs.generate(subject.batches[0][0], new)
    for number, (prompt,) in enumerate(subject.batches):
        runs = {"ours": functools.partial(plain.decode, number), "theirs": functools.partial(theirs.generate, prompt, new)}
        outcomes = measure.in_turn(runs, repeats)
        our_seconds = median(o.prefill_seconds + o.round_seconds for o in outcomes["ours"])
        their_seconds = median(seconds for _, seconds in outcomes["theirs"])
        ours_all.append(our_seconds / new)
        theirs_all.append(their_seconds / new)
        ratios.append(their_seconds / our_seconds)
        same += outcomes["ours"][0].replies[0].tolist() == outcomes["theirs"][0][0]
    return {
        "tokens_per_second": 1 / median(theirs_all),
        "ours_tokens_per_second": 1 / median(ours_all),
        "ours_over_theirs": median(ratios),
        "identical": same,
        "prompts": len(subject.batches),
        "threads": theirs.threads,
        "device": theirs.device,
        "cores": os.cpu_count(),
    }


def rates_of(rates: Rates | None, length: int) -> tuple[float, ...]:
    """The probability at each depth that a synthetic draft is right; none where the acceptance is real."""
    if rates is None:
        return ()
    if not rates.by_depth:
        return tuple(synthetic.rates_for(min(rates.tokens_per_step, length + 1), length))
    return tuple(rates.by_depth[min(depth, len(rates.by_depth) - 1)] for depth in range(length))

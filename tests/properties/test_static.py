"""Nothing that shapes an array depends on data: compilations are counted, host transfers are forbidden, memory is bounded."""

import jax
import numpy as np
import pytest

from redrafter_jax.decode import engine as engines
from redrafter_jax.decode import loop, programs
from redrafter_jax.decode import runner as runners
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.union import Union
from tests import support
from tests.support import compilations

SHAPE = Shape(2, 3)


@pytest.mark.parametrize("beside", [None, Lookup(3, 1, 7)], ids=["recurrent", "union"])
def test_requests_of_a_bucket_share_one_program_and_rounds_compile_nothing(mha, beside):
    recurrent = Recurrent(mha[1], Shape(2, 7))  # a bucket that no other test has compiled in this process
    engine = Engine(mha[0], Union(recurrent, beside) if beside else recurrent)
    with compilations() as found:
        list(engine.stream([[1, 2, 3]], Sampling(0.7), Limits(40), seeds=[5], rounds=2))
    assert len(found) >= 2
    with compilations() as found:
        list(engine.stream([[9] * 17], Sampling(1.3), Limits(33), seeds=[5], rounds=2))
        list(engine.generate([[4, 5]], Sampling(0.2), Limits(64)))
    assert not found


def test_the_first_request_of_a_bucket_is_prefilled_once_and_compiling_runs_nothing(mha, monkeypatch):
    called, compiled = [], runners.compile_programs

    def counted(*arguments):
        made = compiled(*arguments)
        called.append("compile")
        return programs.Programs(*(count(name, getattr(made, name)) for name in ("start", "run")))

    def count(name, program):
        return lambda *arguments: called.append(name) or program(*arguments)

    monkeypatch.setattr(runners, "compile_programs", counted)
    engine = Engine(mha[0], Recurrent(mha[1], SHAPE))
    list(engine.generate([[1, 2, 3]], limits=Limits(40)))
    assert called == ["compile", "start", "run"]
    spent = engine.compile_seconds
    list(engine.generate([[1, 2, 3]], limits=Limits(40)))
    assert called == ["compile", "start", "run", "start", "run"] and engine.compile_seconds == spent > 0


def test_a_reader_is_shown_more_rounds_at_a_time_where_rounds_are_fast_and_nothing_is_compiled(mha, monkeypatch):
    engine, looks = Engine(mha[0], Recurrent(mha[1], SHAPE)), {}
    list(engine.generate([[1, 2, 3]], limits=Limits(40)))
    with compilations() as found:
        for seconds in (0.0, 1e9):  # as if every round were too slow, or none ever
            monkeypatch.setattr(engines, "POLL_SECONDS", seconds)
            looks[seconds] = [progress.replies[0] for progress in engine.stream([[1, 2, 3]], limits=Limits(40))]
    slow, fast = looks.values()
    assert slow[-1].token_ids == fast[-1].token_ids and slow[-1].rounds > 8
    assert [reply.rounds for reply in slow] == list(range(slow[-1].rounds + 1))
    assert [reply.rounds for reply in fast][:4] == [0, 1, 3, 7] and fast[-1].rounds == slow[-1].rounds
    assert not found


def test_a_run_moves_nothing_to_or_from_the_host(mha):
    target, drafter = mha
    state = support.started(target, [[5, 6, 7]], 30, 3, support.policy(1, 1.0))
    rounds = jax.device_put(np.int32(5))
    state = loop.run(target, Recurrent(drafter, SHAPE), state, rounds)
    with jax.transfer_guard("disallow"):
        state = loop.run(target, Recurrent(drafter, SHAPE), state, rounds)
        jax.block_until_ready(state)
    assert int(state.rounds[0]) > 5


def memory(target, drafter, new: int):
    state = support.started(target, [[5, 6, 7]], new, SHAPE.length)
    return loop.run.lower(target, Recurrent(drafter, SHAPE), state, 5).compile().memory_analysis()


def test_temporaries_do_not_grow_by_a_copy_of_the_cache(mha):
    target, drafter = mha
    config = target.config
    small, large = memory(target, drafter, 1000), memory(target, drafter, 9000)
    slot = 2 * 4 * config.num_key_value_heads * config.head_dim  # one layer's key and value of one slot
    layers, nodes = config.num_hidden_layers, SHAPE.nodes
    scores = 4 * config.num_attention_heads * nodes * 4  # a few [H, N] arrays of float32 per slot
    text = 2 * 8  # tokens and flags
    grown = (large.temp_size_in_bytes - small.temp_size_in_bytes) / 8000
    assert grown < slot * 1.5 + scores + text < slot * layers + scores
    tree = nodes * 4 * (config.vocab_size + layers * (2 * config.hidden_size + config.intermediate_size))
    assert small.temp_size_in_bytes - 1000 * grown < 12 * tree


def test_the_state_is_updated_in_place(mha):
    target, drafter = mha
    state = support.started(target, [[5, 6, 7]], 1000, SHAPE.length)
    analysis = loop.run.lower(target, Recurrent(drafter, SHAPE), state, 5).compile().memory_analysis()
    cache = sum(buffer.nbytes for buffer in state.cache.keys + state.cache.values)
    assert analysis.alias_size_in_bytes >= cache

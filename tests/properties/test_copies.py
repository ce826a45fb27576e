"""The loops of decoding write to the cache where it is: no copy of it is made in any round, on CPU or in a program for a TPU. Nor
is a quantised matrix ever there in a wider format."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from infer.fit import points
from redrafter_jax.decode import ladder, loop, prefill, reading
from redrafter_jax.decode.insert import insert
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Recurrent, Shape
from redrafter_jax.devices import placement
from redrafter_jax.model import cache, drafter
from redrafter_jax.slices import compiler, program_text, topology
from tests import on_slice, support
from tests.on_slice import needs_compiler

TARGET = dataclasses.replace(on_slice.TARGET, vocab_size=4096, num_hidden_layers=1)


EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 640}


def elements(kv: cache.KVCache) -> int:
    """Of one buffer on one device."""
    return math.prod(kv.keys[0].sharding.shard_shape(kv.keys[0].shape))


@pytest.mark.parametrize("shape", [AUTOREGRESSIVE, Shape(2, 2)], ids=points.name)
def test_a_loop_on_a_cpu_copies_no_cache(mha, shape):
    target, head = mha
    state = support.started(target, [[5, 6, 7]] * 3, 100, shape.length)
    program = loop.run.lower(target, Recurrent(head, shape).prepare(target), state, 5).compile()
    assert not program_text.parse(program.as_text()).copies_in_loops(elements(state.cache))


@needs_compiler
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", [AUTOREGRESSIVE, Shape(4, 4)], ids=points.name)
def test_a_loop_for_a_tpu_copies_no_cache_and_takes_over_the_state_that_was_donated(shape, batch):
    head = drafter.full(TARGET.vocab_size, TARGET.hidden_size)
    subject = points.Workload(topology.find_slice("v5e:2x2"), TARGET, head, "bfloat16", 2000)
    program = points.compile_loop(subject, (1, 4), batch, shape)
    with jax.set_mesh(subject.slice.mesh(1, 4)):
        state = points.arrays(subject, TARGET.num_hidden_layers, batch, shape)[2]
    assert not program.text.copies_in_loops(elements(state.cache))
    assert program.aliased >= placement.bytes_of(state)


@needs_compiler
def test_a_chunk_of_a_prompt_is_written_for_a_tpu_where_it_belongs():
    bucket = prefill.Bucket(1024, 15_000, 4, chunk=256)
    with jax.set_mesh(topology.find_slice("v5e:2x2").mesh(1, 4)):
        target = compiler.target(TARGET, "bfloat16")
        was = jax.eval_shape(lambda target: reading.blank(target, Plain(), 1, bucket.slots), target)
        given = [((1, 256), ("data", None)), ((), ()), ((1,), ("data",))]
        chunk = [compiler.abstract(shape, jnp.int32, jax.P(*spec)) for shape, spec in given]
        read = jax.jit(lambda target, *given: reading.read(target, Plain(), *given, bucket), donate_argnums=1)
        program = compiler.compile_program(read, target, was, *chunk)
    buffer = elements(was.cache) * 2  # bytes
    assert program.aliased >= 2 * buffer and program.temporaries < buffer


@needs_compiler
@pytest.mark.parametrize("mesh", [(1, 4), (2, 2)])
def test_a_row_is_inserted_and_changes_places_for_a_tpu_where_it_is(mesh):
    head = drafter.full(TARGET.vocab_size, TARGET.hidden_size)
    subject = points.Workload(topology.find_slice("v5e:2x2"), TARGET, head, "bfloat16", 2000)
    with jax.set_mesh(subject.slice.mesh(*mesh)):
        state, one = (points.arrays(subject, TARGET.num_hidden_layers, rows, Shape(2, 2))[2] for rows in (16, mesh[0]))
        row = compiler.abstract((), jnp.int32, jax.P())
        programs = [
            compiler.compile_program(jax.jit(write, donate_argnums=0), state, *given)
            for write, given in ((insert, (row, one)), (ladder.swap, (row, row)))
        ]
    for program in programs:
        assert program.aliased >= placement.bytes_of(state) and program.temporaries < 2 * elements(state.cache)


def matrices_of(target) -> set[int]:
    """The numbers of weights in the quantised matrices of a device."""
    parts = [leaf for leaf in jax.tree.leaves(target.blocks) if leaf.dtype.itemsize == 1]
    return {math.prod(part.sharding.shard_shape(part.shape)) for part in parts}


@needs_compiler
@pytest.mark.parametrize(
    ("weight_format", "shape", "experts"),
    [("int8", AUTOREGRESSIVE, {}), ("int8", Shape(4, 4), {}), ("fp8", AUTOREGRESSIVE, {}), ("int8", Shape(4, 4), EXPERTS)],
    ids=str,
)
def test_a_loop_for_a_tpu_reads_eight_bits_a_weight_and_widens_no_matrix_in_memory(shape, weight_format, experts):
    """Nor one expert's, of which a device has several in one array."""
    config = dataclasses.replace(TARGET, vocab_size=400, weight_format=weight_format)  # no part of the LM head has their size
    config = dataclasses.replace(config, **experts)
    head = drafter.full(config.vocab_size, config.hidden_size)
    subject = points.Workload(topology.find_slice("v5e:2x2"), config, head, "bfloat16", 2000)
    program = points.compile_loop(subject, (1, 4), 1, shape)
    with jax.set_mesh(subject.slice.mesh(1, 4)):
        target, proposer, _ = points.arrays(subject, TARGET.num_hidden_layers, 1, shape)[:3]
    assert program.text.arrays_of(matrices_of(target), 0)  # the matrices themselves
    of_head = {math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(proposer)}  # which are not quantised
    sizes = matrices_of(target) - of_head
    sizes |= {config.hidden_size * config.moe_intermediate_size} if experts else set()
    assert sizes and not program.text.arrays_of(sizes, 1)


@needs_compiler
def test_a_matrix_that_is_widened_before_the_product_would_be_noticed():
    def widens(matrix, x):
        wide = jax.lax.optimization_barrier(matrix.values[...].astype(x.dtype))
        return x @ wide * matrix.scale[...]

    with jax.set_mesh(topology.find_slice("v5e:2x2").mesh(1, 4)):
        config = dataclasses.replace(TARGET, weight_format="int8")
        matrix = compiler.target(config, "bfloat16").blocks[0].q.weight
        x = compiler.abstract((8, TARGET.hidden_size), jnp.bfloat16, jax.P(None, None))
        program = compiler.compile_program(jax.jit(widens), matrix, x)
    assert program.text.arrays_of({math.prod(matrix.shape) // 4}, 1)

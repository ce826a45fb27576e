"""Compiled programs take plain arrays, so that a call costs no walk through the modules."""

import jax
import numpy as np

from redrafter_jax.decode import loop
from redrafter_jax.decode import programs as decoding
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape


def test_a_call_of_a_compiled_program_flattens_no_module(mha):
    engine = Engine(mha[0], Recurrent(mha[1], Shape(2, 2)))
    inputs, bucket = engine.prepare([[1, 2, 3]], Sampling(), Limits(new=8), [0])
    with jax.set_mesh(engine.mesh):
        programs = decoding.compile_programs(engine.target, engine.proposer, inputs, bucket)
        weights = decoding.flatten(engine.target, engine.proposer)
        state = programs.run(weights, programs.start(weights, *inputs), np.int32(100), np.int32(loop.ALL_ROWS))
    assert np.asarray(state.count).tolist() == [8]
    assert "Target" in str(jax.tree.structure(engine.target))
    for program in (programs.start, programs.run):
        taken = str(program.in_tree)
        assert "Target" not in taken and "Recurrent" not in taken
    assert "DecodeState" in str(programs.run.in_tree)

"""The figures that are read from a compiled program's text."""

import jax
import jax.numpy as jnp

from redrafter_jax.decode.wanted import where_wanted
from redrafter_jax.slices import program_text

TEXT = """HloModule m

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} fusion(%p), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"10"}
  %u = f32[8]{0} dynamic-update-slice(%x, %x, %p)
  ROOT %t = (s32[], f32[8]) tuple(%p, %u)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %c = s32[]{:T(128)} constant(7)
  ROOT %r = pred[] compare(%p, %c), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]) while(%a), condition=%condition, body=%body, metadata={op_name="jit(f)/commit/while"}
  %y = f32[8]{0} fusion(%a), kind=kLoop, calls=%f, metadata={op_name="jit(f)/verify/add"}, backend_config={"estimated_cycles":"5"}
  %g = f32[4,8]{1,0} all-gather(%y), dimensions={0}
  %s = (f32[8]{0}, f32[2]{0}) all-reduce(%y, %y), to_apply=%add
  ROOT %z = f32[8]{0} fusion(%g), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"3"}
}
"""


def test_cycles_are_added_by_stage_and_multiplied_in_loops():
    text = program_text.parse(TEXT)
    assert text.cycles() == {"commit": 7 * (10 + program_text.MIN_OP_CYCLES), "verify": 5, "other": 3}
    assert text.traffic() == program_text.Traffic(2, (4 * 8 + 8 + 2) * 4, (4 * 8 + 2 * (8 + 2)) * 4)
    assert len(text.gathers_of(32)) == 1 and not text.gathers_of(33)


COPIES = """HloModule m

%fused (p: f32[2,8]) -> f32[8,2] {
  %p = f32[2,8]{1,0} parameter(0)
  ROOT %t = f32[8,2]{1,0} transpose(%p), dimensions={1,0}
}

%body (p: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %p = (s32[], f32[2,8]) parameter(0)
  %x = f32[2,8]{1,0} copy(%p)
  %in = (f32[2,8]{1,0:T(8,128)S(1)}, f32[2,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %over = (f32[2,8]{1,0:T(8,128)}, f32[2,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %other = f32[2,4]{1,0} copy(%p)
  %y = f32[8,2]{1,0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[2,8]) tuple(%p, %y)
}

ENTRY %main (a: f32[2,8]) -> f32[2,8] {
  %a = f32[2,8]{1,0} parameter(0)
  %before = f32[2,8]{1,0} copy(%a)
  %w = (s32[], f32[2,8]) while(%before), condition=%condition, body=%body
  ROOT %z = f32[2,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_copies_and_transposes_in_loops_are_seen_and_moves_between_a_chips_memories_are_not_among_them():
    found = program_text.parse(COPIES).copies_in_loops(16)
    assert sorted(line.removeprefix("ROOT ").split(" = ")[0] for line in found) == ["%over", "%t", "%x"]


BRANCHES = """HloModule m

%slow (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %x = f32[8]{0} fusion(%p), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"900"}
}

%fast (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %x = f32[8]{0} fusion(%p), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"20"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %z = f32[8]{0} conditional(%a, %a, %a), branch_computations={%slow, %fast}, metadata={op_name="jit(f)/verify/cond"}
}
"""


def test_of_a_condition_the_branch_of_fewer_cycles_is_counted():
    assert program_text.parse(BRANCHES).cycles() == {"verify": 20}
    assert program_text.parse(BRANCHES.replace("verify/cond", "verify/wanted/cond/branch_1_fun/cond")).cycles() == {"verify": 20}


def test_of_a_condition_for_what_was_asked_for_the_branch_that_computes_it_is_counted():
    assert program_text.parse(BRANCHES.replace("verify/cond", "verify/wanted/cond")).cycles() == {"verify": 900}


def test_that_is_how_such_a_condition_is_called():
    branch = jax.jit(lambda x: where_wanted(x > 0, lambda: jnp.sort(x), lambda: x)).lower(jnp.zeros(8)).compile().as_text()
    (line,) = [line for line in branch.splitlines() if " conditional(" in line]
    assert program_text.WANTED in line

"""Medusa's heads in `infer.fit` and `train.fit`: what they hold and read, by hand, with no compiler."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest

from infer.fit import __main__ as fit
from redrafter_jax.decode.propose.heads import nodes_of
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import mesh, placement
from redrafter_jax.loss import LossConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.slices import roofline
from redrafter_jax.slices.chips import CHIPS
from redrafter_jax.slices.topology import Slice
from tests.on_slice import MESH, TARGET
from train.fit import __main__ as train_fit
from train.fit import points as step_points
from train.fit import report as step_report
from train.run import loop, step

FLOORS = ["--model", "llama-7b", "--topology", "v5e:2x4", "--floors", "--batch", "1"]
MEDUSA = ["--method", "medusa", "--positions", "4", "--blocks", "1"]
D, V, SHARDS = 4096, 32000, 8


def floors(capsys, *more: str) -> dict:
    assert fit.main([*FLOORS, "--json", *more]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    return row


def test_medusas_heads_hold_their_blocks_and_perhaps_their_lm_heads(capsys):
    def resident(*more: str) -> float:
        return floors(capsys, *MEDUSA, *more)["resident"] * SHARDS / 2  # numbers of two bytes

    own, shared, deeper = resident(), resident("--head", "slim"), resident("--head", "slim", "--blocks", "3")
    assert own - shared == pytest.approx(4 * D * V, rel=0.01)
    assert deeper - shared == pytest.approx(4 * 2 * D * D, rel=0.01)
    assert resident("--positions", "8") - own == pytest.approx(4 * (D * V + D * D), rel=0.01)


def test_a_shared_lm_head_is_read_once_and_multiplied_for_every_head():
    own, shared = (
        roofline.draft(roofline.Setting(TARGET, heads, *MESH, 8, 64, 2), 1, 4)
        for heads in (MedusaConfig(vocab_size=32000, hidden_size=1024, num_heads=4, tied=tied) for tied in (False, True))
    )
    blocks, columns = 4 * 1024 * 1024, 1024 * 32000
    assert own.flops == shared.flops == 2 * 4 * (blocks + 4 * columns) / MESH[1]
    assert (own.bytes, shared.bytes) == (2 * (blocks + 4 * columns) / MESH[1], 2 * (blocks + columns) / MESH[1])


def test_heads_that_share_an_lm_head_and_draft_fewer_tokens_hold_no_columns_of_their_own():
    of_all, of_few = (MedusaConfig(vocab_size=32000, hidden_size=1024, num_heads=4, draft_vocab=few) for few in (0, 8000))
    few, everything = (placement.to_decode(TARGET, heads, "bfloat16").size for heads in (of_few, of_all))
    assert few == everything + 4 * 8000  # the table of ids


def test_by_default_the_whole_tree_is_drafted_and_a_shape_is_a_part_of_it(capsys):
    assert list(floors(capsys, *MEDUSA)["draft_over_plain"]) == ["16x4"]
    row = floors(capsys, *MEDUSA, "--beams", "16x4", "2x2", "--nodes", "64", "5")
    assert set(row["round_over_plain"]) == {"16x4", "2x2"} and row["draft_over_plain"]["16x4"] == row["draft_over_plain"]["2x2"]
    for shape, nodes in (("16x4", "64"), ("2x2", "5")):
        assert row["round_over_plain"][shape] == pytest.approx(row["verify_over_plain"][nodes] + row["draft_over_plain"][shape])
    heads = MedusaConfig(vocab_size=V, hidden_size=D, num_heads=4)
    assert (nodes_of(heads, Shape(16, 4)), nodes_of(heads, Shape(2, 2)), nodes_of(heads, Shape(1, 3))) == (64, 5, 4)


def test_the_heading_says_which_heads(capsys):
    assert fit.main([*FLOORS, *MEDUSA, "--head", "slim"]) == 0
    assert "4 Medusa heads of 1 block with the target's LM head" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--positions", "4"], "--positions is of --method medusa"),
        ([*MEDUSA, "--beams", "4x5"], "--beams 4x5 is deeper than the 4 heads of --positions"),
        ([*MEDUSA[:2], "--positions", "0"], "--positions should be from 1 to 64, not 0"),
        (["--blocks", "0"], "--blocks should be from 1 to 256, not 0"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, capsys):
    assert fit.main([*FLOORS, *arguments]) == 2
    out = capsys.readouterr()
    assert out.err.startswith(f"error: {said}") and out.err.count("\n") == 1 and not out.out


@pytest.mark.parametrize("kind", ["full", "slim"])
def test_a_training_step_of_medusas_heads_is_traced_with_their_shapes(kind):
    options = train_fit.Options("", method="medusa", positions=3, blocks=2, head=kind, batch=(4,), row_length=64)
    recipe = train_fit.recipe_of(options)
    subject = step_points.StepSubject(Slice("v5e:2x4", CHIPS["v5e"], (None,) * 8), TARGET, recipe, "bfloat16")
    with mesh.on_paper(1, 1):
        frozen, state, rows = step_points.arrays(subject, 4)
        numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.drafter))
        E, U = TARGET.hidden_size, TARGET.vocab_size
        assert numbers == 3 * 2 * (E * E + E) + (3 * E * U if kind == "full" else 0)
        assert placement.bytes_of(state.optimizer) == pytest.approx(2 * 4 * numbers, rel=0.01)  # both moments
        update = functools.partial(step.step, schedule=loop.make_schedule(recipe), config=LossConfig(3, 1.0))
        after, _ = jax.eval_shape(update, state, frozen, rows)
    assert jax.tree.structure(after) == jax.tree.structure(state) and after.step.dtype == jnp.int32
    words = "LM heads of their own" if kind == "full" else "the target's LM head"
    assert f"3 Medusa heads of 2 blocks with {words}" in step_report.heading(subject, "llama-7b", "v5e:2x4")

"""The head as it decodes: its first layer in two parts, the same numbers, and no copy of a weight in a round."""

import re

import jax
import numpy as np

from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from tests import support
from tests.support import put


def test_a_head_in_parts_gives_the_same_numbers(pair):
    name, target, drafter = pair
    ready = Engine(target, Recurrent(drafter)).proposer.head
    assert len(jax.tree.leaves(ready)) == len(jax.tree.leaves(drafter)) + 1
    vectors, _ = support.golden(f"drafter_{name}")
    h, state = put(vectors["h"]), put(vectors["forced/state"][:, 0])
    exits = [head.exit(head.context(h), state) for head in (drafter, ready)]
    np.testing.assert_array_equal(*exits)
    assert Engine(target, Recurrent(ready)).proposer.head is ready


def copied_weights(target, drafter, shape: Shape) -> list[str]:
    """The operations of a round that write out a part of a layer that reads ``[h ; s]``."""
    D, E = drafter.config.hidden_size, drafter.config.exit_size
    state = support.started(target, [[5, 6, 7]], 30, shape.length)
    text = loop.run.lower(target, Recurrent(drafter, shape), state, 5).compile().as_text()
    return re.findall(rf"^ *%(\S+) = f32\[{D},{E}\]\S* (?:copy|slice|fusion)\(.*while/body", text, re.MULTILINE)


def test_no_weight_of_the_head_is_copied_in_a_round(mha):
    target, drafter = mha
    shape = Shape(2, 3)
    assert len(copied_weights(target, drafter, shape)) >= 2  # what h reads, and what s reads
    assert not copied_weights(target, Engine(target, Recurrent(drafter)).proposer.head, shape)

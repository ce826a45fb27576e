"""What a reply says of its drafts, in vLLM's words: against a reply that was counted by hand, and pass by pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.decode.pack import pack_sequences
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.proposer import Proposer, Round
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.decode.reply import cut

PROMPT = [5, 9, 200, 3]
LENGTH = 3  # L
# At how many tokens of the reply a pass drafts how many tokens in a row, the first of them right, and one wrong branch beside them.
PLAN = {1: (3, 2), 4: (0, 0), 5: (2, 0), 6: (3, 3), 10: (3, 3)}


@dataclasses.dataclass(frozen=True)
class Planned(Proposer):
    """Drafts by `PLAN`. text: what the target writes."""

    text: tuple[int, ...]

    @property
    def round(self) -> Round:
        return Round(LENGTH, 1 + 2 * LENGTH)

    def propose(self, target, view, memory):
        count_B = view.length - len(PROMPT) + 1
        drafted, right = (jnp.array([PLAN.get(at, (0, 0))[which] for at in range(16)]) for which in (0, 1))
        drafted_B1, right_B1 = (_at(numbers, count_B[:, None]) for numbers in (drafted, right))
        depths = jnp.arange(LENGTH)
        next_BL = _at(jnp.array(self.text), count_B[:, None] + depths)
        chain_BL = jnp.where(depths < right_B1, next_BL, (next_BL + 1) % 503)
        branch_BL = (next_BL + 2) % 503
        chain_scores_BL = jnp.where(depths < drafted_B1, -1.0 - depths, -jnp.inf)
        branch_scores_BL = jnp.where((depths < 1) & (drafted_B1 > 0), -9.0, -jnp.inf)
        tokens_BWL = jnp.stack([chain_BL, branch_BL], axis=1)
        scores_BWL = jnp.stack([chain_scores_BL, branch_scores_BL], axis=1)
        return pack_sequences(view.g, tokens_BWL, scores_BWL, self.round.nodes), memory


jax.tree_util.register_dataclass(Planned, data_fields=[], meta_fields=["text"])


def _at(numbers, at_BX):
    return numbers.at[at_BX].get(out_sharding=P("data", None), mode="clip")


@pytest.fixture(scope="module")
def planned(mha):
    """12 tokens in 5 passes, which deliver 3, 1, 1, 4 and, cut by the limit, 2."""
    plain = next(Engine(mha[0]).generate([PROMPT], limits=Limits(16)))
    assert plain.metrics == {"speculative_decoding": None}
    reply = next(Engine(mha[0], Planned(tuple(plain.token_ids))).generate([PROMPT], limits=Limits(12)))
    assert reply.token_ids == plain.token_ids[:12] and (reply.rounds, reply.accepted_histogram) == (5, [2, 1, 1, 1])
    return reply


def test_a_reply_has_the_figures_that_a_person_counts(planned):
    assert planned.scored == [0, 5, 0, 0, 1, 4, 5, 0, 0, 0, 5, 0]
    assert planned.metrics["speculative_decoding"] == {
        "mean_acceptance_length": 1 + 6 / 4,
        "draft_acceptance_rate": 6 / 15,
        "acceptance_histogram": [1, 1, 1, 1],  # not the second pass, which drafted nothing
        "num_spec_steps": 4,
        "num_accepted_draft_tokens": 2 + 0 + 3 + 1,
        "num_draft_tokens": 4 + 3 + 4 + 4,
        "num_spec_tokens": 3,
    }


@pytest.mark.parametrize(
    ("count", "histogram", "drafts"), [(1, [0, 0, 0, 0], 0), (3, [0, 1, 0, 0], 4), (6, [1, 0, 1, 0], 7), (8, [1, 1, 1, 0], 11)]
)
def test_a_reply_that_a_stop_string_cuts_has_those_up_to_there(planned, count, histogram, drafts):
    found = cut(planned, count, "x").metrics["speculative_decoding"]
    assert (found["acceptance_histogram"], found["num_draft_tokens"]) == (histogram, drafts)
    assert count > 1 or (found["mean_acceptance_length"], found["draft_acceptance_rate"]) == (1.0, 0.0)


@pytest.mark.parametrize("way", ["search", "budget", "lookup", "union"])
def test_the_figures_agree_with_each_other_in_a_batch(mha, way):
    search, lookup = Recurrent(mha[1], Shape(3, 4, budget=7 if way == "budget" else 0)), Lookup(3, 1, 5)
    proposer = {"lookup": lookup, "union": Union(search, lookup)}.get(way, search)
    replies = list(Engine(mha[0], proposer).generate([PROMPT, [7, 7, 7, 8, 7, 7], [1]], limits=Limits(24), batch=3))
    for reply in replies:
        found, scored = reply.metrics["speculative_decoding"], np.array(reply.scored)
        histogram, nodes = np.array(found["acceptance_histogram"]), scored[scored > 0]
        assert len(nodes) == reply.rounds and len(histogram) == proposer.round.length + 1 == found["num_spec_tokens"] + 1
        assert histogram.sum() == found["num_spec_steps"] == (nodes > 1).sum()
        assert histogram @ np.arange(len(histogram)) == found["num_accepted_draft_tokens"] <= sum(reply.drafted)
        assert found["num_draft_tokens"] == (nodes - 1).sum()
        if way in ("search", "budget"):
            assert set(nodes) == {proposer.round.nodes} and found["mean_acceptance_length"] == pytest.approx(reply.tokens_per_step)
    if way == "lookup":
        assert any(reply.scored.count(1) for reply in replies)

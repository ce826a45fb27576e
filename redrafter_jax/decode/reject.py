"""Speculative sampling by rejection (arXiv 2211.17192): drafts that were drawn from distributions q, and a target that says p.

A draft x is accepted with probability min(1, p(x) / q(x)); where it is not, p becomes the normalised max(0, p - q), and the next
chain's draft of the same prefix has its turn (SpecInfer, arXiv 2305.09781). The last p gives the token behind what was accepted.
Exact for drafts that are independent draws, which those of a beam search are not: a beam is chosen, so it has no q.
"""

import jax
import jax.numpy as jnp

from redrafter_jax.decode import sample
from redrafter_jax.decode.pack import Tree
from redrafter_jax.decode.policy import Policy
from redrafter_jax.errors import BadInput
from redrafter_jax.model.layers import take_rows

NEEDS_DRAWS = (
    "acceptance by rejection needs drafts that were drawn from a distribution: those of one beam, or of the tree chains; a beam"
    " search, a lookup and the heads of Medusa choose theirs"
)


def override(
    policy: Policy, tree: Tree, warped_BNV: jax.Array, noise_BMV: jax.Array, position_B: jax.Array, last_B: jax.Array, choice_BN
) -> tuple[jax.Array, jax.Array]:
    """For the rows whose drafts were drawn: the last accepted node ``[B]``, and the choices ``[B, N]`` with the token behind it;
    for any other row what was given. ``position``: of the tokens at depth 1.

    Raises:
      BadInput: the tree was not drawn.
    """
    if tree.tokens.shape[1] == 1:
        return last_B, choice_BN
    if tree.drawn is None:
        raise BadInput(NEEDS_DRAWS)
    drawn_B, (node_B, p_BV) = policy.drawn_B, walk(policy, tree, warped_BNV, position_B)
    depth_B1 = take_rows(tree.depth, node_B[:, None])
    noise_BV = take_rows(noise_BMV, depth_B1)[:, 0]
    g_B = sample.choose(jnp.log(p_BV)[:, None], noise_BV[:, None])[0][:, 0]
    is_last_BN = jnp.arange(choice_BN.shape[1]) == node_B[:, None]
    return jnp.where(drawn_B, node_B, last_B), jnp.where(drawn_B[:, None] & is_last_BN, g_B[:, None], choice_BN)


def walk(policy: Policy, tree: Tree, warped_BNV: jax.Array, position_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last accepted node ``[B]``, and the distribution ``[B, V]`` of the token behind it."""
    tokens_BWL, W, L = tree.drawn.tokens, *tree.drawn.tokens.shape[1:]
    node_B = jnp.zeros_like(position_B)
    p_BV = jax.nn.softmax(warped_BNV[:, 0], axis=-1)
    goes_on_B = node_B == 0
    shares_prefix_BW = goes_on_B[:, None] & jnp.ones((1, W), bool)
    for depth in range(L):
        draws_BW = sample.acceptance_draws(policy, position_B + depth, W)
        accepted_B = ~goes_on_B
        for chain in range(W):
            node = 1 + depth * W + chain
            token_B, has_turn_B = tokens_BWL[:, chain, depth], ~accepted_B & shares_prefix_BW[:, chain] & tree.valid[:, node]
            q_BV = jax.nn.softmax(tree.drawn.logits[:, chain, depth], axis=-1)
            is_accepted_B = has_turn_B & (draws_BW[:, chain] * _of(q_BV, token_B) < _of(p_BV, token_B))
            p_BV = jnp.where((has_turn_B & ~is_accepted_B)[:, None], residual(p_BV, q_BV), p_BV)
            p_BV = jnp.where(is_accepted_B[:, None], jax.nn.softmax(warped_BNV[:, node], axis=-1), p_BV)
            same_BW = tokens_BWL[:, :, depth] == token_B[:, None]
            shares_prefix_BW = jnp.where(is_accepted_B[:, None], shares_prefix_BW & same_BW, shares_prefix_BW)
            node_B = jnp.where(is_accepted_B, node, node_B)
            accepted_B |= is_accepted_B
        goes_on_B &= accepted_B
    return node_B, p_BV


def residual(p_BV: jax.Array, q_BV: jax.Array) -> jax.Array:
    """What is left of p once a draw from q was rejected; p itself where rounding leaves nothing."""
    left_BV = jnp.maximum(p_BV - q_BV, 0.0)
    total_B1 = jnp.sum(left_BV, axis=-1, keepdims=True)
    return jnp.where(total_B1 > 0, left_BV / jnp.maximum(total_B1, jnp.finfo(jnp.float32).tiny), p_BV)


def _of(p_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """The probability ``[B]`` of a token, which may be on any shard."""
    return jnp.sum(jnp.where(jnp.arange(p_BV.shape[-1]) == token_B[:, None], p_BV, 0.0), axis=-1)

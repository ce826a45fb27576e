"""Tree, cache -> Verdict: the target scores every node in one pass, chooses its own next token at each, and the path
that agrees with its choices is accepted."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import adjust, reject, sample
from redrafter_jax.decode.logprobs import Logprobs, measure
from redrafter_jax.decode.pack import Tree
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.wanted import where_wanted
from redrafter_jax.model.cache import KVCache, KVRows, take
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Pass, Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one pass of the target decided, M = L + 1.

    accepted: ``[B]`` int32, drafted tokens accepted, 0..L; emitted: ``[B, M]`` int32, the accepted tokens and then the
    target's own next one, arbitrary after that; g: ``[B]``, that next one; h: ``[B, D + F*D]``, what chose it (`Pass.shown`);
    rows: keys and values of the root and the accepted nodes, ``[B, K, M, C]``, of which ``accepted + 1`` count;
    finite: ``[B]`` bool, whether the logits of every node on the accepted path are finite. Where False, the other fields
    mean nothing.
    path: ``[B, M]``, the root and the accepted nodes, of which ``accepted + 1`` count.
    scored: ``[B]`` int32, the nodes of the tree, with the root.
    logprobs: of the emitted tokens; None where no row reports them.
    """

    accepted: jax.Array
    emitted: jax.Array
    g: jax.Array
    h: jax.Array
    rows: KVRows
    finite: jax.Array
    path: jax.Array
    scored: jax.Array
    logprobs: Logprobs | None = None


def verify(
    target: Target,
    tree: Tree,
    cache: KVCache,
    policy: Policy,
    noise_BMV: jax.Array | None,
    length: int,
    history: adjust.History | None = None,
) -> Verdict:
    """Scores and follows the tree. ``noise`` belongs to the positions behind depths 0..L; ``history`` to the text up to the
    root, None where no row adjusts its logits by it."""
    scored = score(target, tree, cache)
    logits_BNV = target.unembed(scored.hidden)

    def warp() -> jax.Array:
        if history is None:
            return sample.warp(policy, logits_BNV)
        paths_BNL = adjust.paths(tree.tokens, tree.parent, tree.depth, length)
        return sample.warp(policy, adjust.adjust(policy, history, logits_BNV, paths_BNL))

    def choose(warped_BNV: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sample.choose(warped_BNV, None if noise_BMV is None else take_rows(noise_BMV, tree.depth))

    if policy.typical or policy.drawn:
        warped_BNV = warp()
        choice_BN, finite_BN = choose(warped_BNV)
    elif policy.sampled or history is not None:
        greedily = lambda: sample.choose(logits_BNV, None)  # noqa: E731
        choice_BN, finite_BN = where_wanted(policy.samples_B | policy.adjusts_B, lambda: choose(warp()), greedily)
    else:
        choice_BN, finite_BN = sample.choose(logits_BNV, None)
    agrees_BN = tree.tokens == take_rows(choice_BN, tree.parent)
    if policy.typical:
        agrees_BN = jnp.where(policy.typical_B[:, None], _likely_enough(warped_BNV, tree), agrees_BN)
    last_B = follow(tree, agrees_BN)
    if policy.drawn:
        last_B, choice_BN = reject.override(policy, tree, warped_BNV, noise_BMV, cache.length + 1, last_B, choice_BN)
    verdict = _verdict(tree, last_B, choice_BN, finite_BN, scored, length)
    if not policy.logprobs:
        return verdict
    measured = measure(policy, take_rows(logits_BNV, verdict.path), verdict.emitted)
    return dataclasses.replace(verdict, logprobs=measured)


def score(target: Target, tree: Tree, cache: KVCache) -> Pass:
    """The tree pass: hidden ``[B, N, D]`` of each node after its own prefix, and the nodes' keys and values."""
    positions_BN = cache.length[:, None] + tree.depth
    return target(tree.tokens, positions_BN, tree.ancestors & tree.valid[:, None, :], cache)


def follow(tree: Tree, agrees_BN: jax.Array) -> jax.Array:
    """The deepest node ``[B]`` whose whole path agrees (the first of them, where a rule can accept several paths)."""
    agrees_BN = (agrees_BN | (tree.depth == 0)) & tree.valid
    reached_BN = jnp.all(agrees_BN[:, None, :] | ~tree.ancestors, axis=-1)
    return jnp.argmax(jnp.where(reached_BN, tree.depth, -1), axis=-1)


def _likely_enough(warped_BNV: jax.Array, tree: Tree) -> jax.Array:
    """Medusa's typical acceptance ``[B, N]``: a node's token has a probability above a threshold that its parent's entropy
    gives. The text does not have the target's distribution."""
    logp_BNV = jax.nn.log_softmax(warped_BNV, axis=-1)
    p_BNV = jnp.exp(logp_BNV)
    entropy_BN = -jnp.sum(jnp.where(p_BNV > 0, p_BNV * logp_BNV, 0.0), axis=-1)
    threshold_BN = jnp.minimum(sample.TYPICAL_EPSILON, sample.TYPICAL_DELTA * jnp.exp(-entropy_BN))
    is_token_BNV = jnp.arange(p_BNV.shape[-1]) == tree.tokens[..., None]  # a sum, for a token may be on any shard
    p_BN = jnp.sum(jnp.where(is_token_BNV, take_rows(p_BNV, tree.parent), 0.0), axis=-1)
    return p_BN > take_rows(threshold_BN, tree.parent)


def _verdict(tree: Tree, last_B, choice_BN, finite_BN, scored: Pass, length: int) -> Verdict:
    accepted_B = take_rows(tree.depth, last_B[:, None])[:, 0]
    on_path_BN = take_rows(tree.ancestors, last_B)
    depths = jnp.arange(length + 1)
    # path[b, d]: the node at depth d on the way to `last`; 0 past its end
    path_BM = jnp.argmax(on_path_BN[:, None, :] & (tree.depth[:, None, :] == depths[:, None]), axis=-1)
    path_tokens_BM = take_rows(tree.tokens, path_BM)
    g_B = take_rows(choice_BN, last_B[:, None])[:, 0]
    parts = (path_tokens_BM[:, 1:], g_B[:, None])  # a single row of a single token would lose its split axis
    drafted_BM = jnp.concatenate([jax.sharding.reshard(part, P("data", None)) for part in parts], axis=1)
    emitted_BM = jnp.where(depths < accepted_B[:, None], drafted_BM, g_B[:, None])
    h_BD = take_rows(scored.shown, last_B)
    finite_B = jnp.all(finite_BN | ~on_path_BN, axis=-1)
    scored_B = jnp.sum(tree.valid, axis=-1, dtype=jnp.int32)
    return Verdict(accepted_B, emitted_BM, g_B, h_BD, take(scored.rows, path_BM), finite_B, path_BM, scored_B)

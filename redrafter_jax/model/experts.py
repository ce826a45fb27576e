"""A mixture of experts in place of a layer's feed-forward: a router chooses for each token k of E gated feed-forwards, and what
they make is added up by the router's weights.

    probabilities  softmax(x router)             [B, N, E], in float32
    chosen         the k largest of each token, perhaps divided by their sum

The experts are split over ``model``. A shard has every token of its rows: it sorts the (token, expert) pairs by expert, multiplies
each group by its expert's matrices (`jax.lax.ragged_dot`), counts the pairs of other shards' experts for nothing, and the sums of
the shards are added. No expert is ever too full for a pair, so what a token gets does not depend on what else is in the pass.
`ragged_dot` takes matrices of x's own format alone. Quantised ones are widened on their way into the product of one expert at a
time, a part of its group at a time, in a loop: only experts that some pair has are read, in eight bits, and no wider copy of one is
ever in memory (a test reads the program for a TPU).
In shapes X is the number of experts that are chosen, and M = B N X counts the pairs of a shard.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import layers
from redrafter_jax.model.quantised import Quantised, quantise
from redrafter_jax.model.target_config import TargetConfig

PART_ROWS = 128  # rows of a group that are multiplied at a time by a quantised matrix: a tile of a TPU's matrix unit
SPLIT, SPLIT_SCALES = P("model", None, None), P("model", None)  # of matrices [E, in, out]: each shard has some of the experts


class Experts(nnx.Module):
    """The router and the experts of one layer, matrices ``[E, in, out]``."""

    def __init__(self, key, config: TargetConfig, dtype):
        E, D, F = config.num_experts, config.hidden_size, config.moe_intermediate_size
        keys = jax.random.split(key, 4)
        self.config = config
        self.router = layers.param(keys[0], (D, E), P(None, None), dtype)
        self.gate = layers.param(keys[1], (E, D, F), SPLIT, dtype, scale=D**-0.5)
        self.up = layers.param(keys[2], (E, D, F), SPLIT, dtype, scale=D**-0.5)
        self.down = layers.param(keys[3], (E, F, D), SPLIT, dtype, scale=F**-0.5)

    def quantise(self, weight_format: str) -> None:
        """Puts the experts' matrices into a format of `quantised.FORMATS`, each with scales of its own; the router stays."""
        for name in ("gate", "up", "down"):
            setattr(self, name, quantise(getattr(self, name)[...], weight_format))

    def __call__(self, x_BND: jax.Array, act: Callable[[jax.Array], jax.Array] = jax.nn.silu) -> jax.Array:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        weights_BNX, chosen_BNX = self.route(x_BND)
        matrices = tuple(map(_gathered, (self.gate, self.up, self.down)))
        rows, splits = P("data", None, None), tuple((SPLIT, SPLIT_SCALES)[: len(each)] for each in matrices)

        def of_shard(x_BND, weights_BNX, chosen_BNX, *matrices):
            # Said before they are indexed: JAX 0.10 forgets to add up the gradients of what an index makes differ by shard.
            x_BND, weights_BNX = (jax.lax.pcast(each, "model", to="varying") for each in (x_BND, weights_BNX))
            mixed_BND = _mix(x_BND, weights_BNX, chosen_BNX, *matrices, act)
            return jax.lax.psum(mixed_BND, "model").astype(x_BND.dtype)

        with jax.named_scope("experts"):
            mixed = jax.shard_map(of_shard, in_specs=(rows,) * 3 + splits, out_specs=rows)
            return mixed(x_BND, weights_BNX, chosen_BNX, *matrices)

    def route(self, x_BND: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weights, in x's dtype, and the numbers of each token's experts, ``[B, N, X]``."""
        logits_BNE = layers.times(x_BND, self.router, P(None, None))
        probabilities_BNE = jax.nn.softmax(logits_BNE.astype(jnp.float32), axis=-1)
        weights_BNX, chosen_BNX = jax.lax.top_k(probabilities_BNE, self.config.num_experts_per_tok)
        if self.config.norm_topk_prob:
            weights_BNX = weights_BNX / jnp.sum(weights_BNX, axis=-1, keepdims=True)
        return weights_BNX.astype(x_BND.dtype), chosen_BNX


def weights_per_token(blocks, config: TargetConfig) -> float:
    """How many weights of a target's layers a token meets: of experts those of the chosen ones."""
    chosen = config.num_experts_per_tok / config.num_experts if config.num_experts else 1
    weights = jax.tree.leaves(blocks, is_leaf=lambda part: isinstance(part, Quantised))
    return sum(leaf.size * (chosen if len(leaf.shape) == len(SPLIT) else 1) for leaf in weights)


def _gathered(matrix: nnx.Param | Quantised) -> tuple[jax.Array, ...]:
    """The matrices of all experts as they are multiplied, and their scales ``[E, out]`` where they are quantised."""
    if isinstance(matrix, Quantised):
        return layers.gather_weight(matrix.values, SPLIT), layers.gather_weight(matrix.scale, SPLIT_SCALES)
    return (layers.gather_weight(matrix, SPLIT),)


def _mix(x_BND, weights_BNX, chosen_BNX, gate, up, down, act) -> jax.Array:
    """What the experts of this shard add, in float32."""
    (B, N, D), E = x_BND.shape, gate[0].shape[0]
    X = chosen_BNX.shape[-1]
    expert_M = chosen_BNX.reshape(-1) - jax.lax.axis_index("model") * E
    expert_M = jnp.where((expert_M >= 0) & (expert_M < E), expert_M, E)  # other shards' pairs come last
    order_M = jnp.argsort(expert_M)
    sizes_E = jnp.sum(expert_M[:, None] == jnp.arange(E), axis=0, dtype=jnp.int32)
    x_MD, sorted_M = x_BND.reshape(-1, D)[order_M // X], expert_M[order_M]
    made_MF = act(_ragged(x_MD, gate, sizes_E)) * _ragged(x_MD, up, sizes_E)
    made_MD = _ragged(made_MF, down, sizes_E).astype(jnp.float32) * weights_BNX.reshape(-1)[order_M][:, None]
    made_MD = jnp.where((sorted_M < E)[:, None], made_MD, 0)  # rows of no group are undefined
    return jnp.sum(made_MD[jnp.argsort(order_M)].reshape(B, N, X, D), axis=2)


def _ragged(x_MI: jax.Array, matrices: tuple[jax.Array, ...], sizes_E: jax.Array) -> jax.Array:
    """``[M, out]``: groups of rows, one behind the other, each by its expert's matrix ``[in, out]``. Rows of no group are
    undefined."""
    if len(matrices) == 2:
        return _by_parts(x_MI, *matrices, sizes_E)
    (matrices_EIO,) = matrices
    return jax.lax.ragged_dot(x_MI, matrices_EIO, sizes_E, precision=layers.precision_of(x_MI, matrices_EIO))


def _by_parts(x_MI: jax.Array, values_EIO: jax.Array, scale_EO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """The same with quantised matrices, `PART_ROWS` rows at a time; the scale comes after the product, as in `layers.times`."""
    M, (E, _, out) = len(x_MI), values_EIO.shape
    R = min(M, PART_ROWS)
    ends_E = jnp.cumsum(sizes_E)

    def of_expert(expert, made_MO):
        def of_part(carry):
            at, made_MO = carry
            first = jnp.minimum(at, M - R)  # the last part begins early enough to have all its rows
            x_RI = jax.lax.dynamic_slice_in_dim(x_MI, first, R)
            matrix_IO = jax.lax.dynamic_index_in_dim(values_EIO, expert, keepdims=False).astype(x_MI.dtype)
            y_RO = (layers.einsum("ri,io->ro", x_RI, matrix_IO) * scale_EO[expert]).astype(x_MI.dtype)
            row_R = first + jnp.arange(R)
            is_own = (row_R >= at) & (row_R < ends_E[expert])
            y_RO = jnp.where(is_own[:, None], y_RO, jax.lax.dynamic_slice_in_dim(made_MO, first, R))
            return at + R, jax.lax.dynamic_update_slice_in_dim(made_MO, y_RO, first, 0)

        start = ends_E[expert] - sizes_E[expert]
        return jax.lax.while_loop(lambda carry: carry[0] < ends_E[expert], of_part, (start, made_MO))[1]

    empty_MO = jax.lax.pcast(jnp.zeros((M, out), x_MI.dtype), ("data", "model"), to="varying")
    return jax.lax.fori_loop(0, E, of_expert, empty_MO)

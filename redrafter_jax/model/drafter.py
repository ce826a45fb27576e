"""The draft head: a recurrence over drafted tokens, then residual blocks, then an LM head (paper section 3.1).

    s_t = silu(W e(x_{t-1}) + U s_{t-1} + b)     x_0 = g, s_0 = 0, e the target's own embedding
    z   = [h ; s_t], through input_proj only where E != 2D
    z   = z + silu(A z + a)                      n times
    logits = z C                                 C is the head's own, or the target's (slim)

Parts beyond these, a bigram term and a gated state, are in `parts.py`; a candidate head is in `candidates.py`.
A head may have a draft vocabulary (FR-Spec, arXiv 2502.14856): C then has a column for each of U tokens alone, and a table
says which. What is drafted goes through the table at once, so everything outside this file knows the target's ids only.
Architecture and weight names are Apple's (`files/weights.py` reads and writes their format), so heads travel both ways.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from redrafter_jax.model import draft_ids, layers, parts
from redrafter_jax.model.candidates import CandidateHead, wrong_numbers
from redrafter_jax.model.confidence import Confidence
from redrafter_jax.model.target import Target, unembed

# fields of a config that add to the paper's head, and what they add
PARTS = {"bigram": "a bigram term", "gated": "gates", "depths": "features of inner layers", "candidates": "a candidate head"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """The shapes of a head. ``tied``: the LM head is the target's own, which needs ``exit_size == hidden_size``.
    ``draft_vocab``: U, tokens that the head can draft; 0 is the target's full vocabulary, without a table. ``bigram``: the rank of
    a bigram term, 0 for none; ``gated``: whether the state has gates; ``depths``: layers of the target, counted from 0, whose
    outputs the head reads beside h (`parts.py`). ``candidates``: C, tokens of which a step computes exact logits, found by a copy
    of the LM head of rank ``candidate_rank`` (`candidates.py`); both 0 for none.
    ``confidence``: what its scores say of acceptance, where that was fitted."""

    vocab_size: int
    hidden_size: int
    exit_size: int
    num_blocks: int = 2
    rnn: bool = True
    tied: bool = False
    draft_vocab: int = 0
    bigram: int = 0
    gated: bool = False
    depths: tuple[int, ...] = ()
    candidates: int = 0
    candidate_rank: int = 0
    confidence: Confidence | None = None

    def __post_init__(self):
        if not 0 <= self.draft_vocab <= self.vocab_size:
            raise ValueError(f"a draft vocabulary of {self.draft_vocab} is not a part of the target's {self.vocab_size} tokens")
        if self.tied and self.exit_size != self.hidden_size:
            raise ValueError(f"a tied head exits at the target's width {self.hidden_size}, not {self.exit_size}")
        if not 0 <= self.bigram <= self.vocab_size:
            raise ValueError(f"a bigram term of rank {self.bigram} is not of 0 to the vocabulary's {self.vocab_size}")
        if self.gated and not self.rnn:
            raise ValueError("a state without recurrence has no gates")
        if list(self.depths) != sorted(set(self.depths)) or any(layer < 0 for layer in self.depths):
            raise ValueError(f"depths {self.depths} should be layers of the target, counted from 0 and ascending")
        wrong = wrong_numbers(self, self.candidates, self.candidate_rank) if self.candidates or self.candidate_rank else None
        if wrong:
            raise ValueError(f"a candidate head's {wrong[0]} {wrong[1]}")

    def make(self, key, dtype=jnp.float32, ids: jax.Array | None = None) -> "Drafter":
        """An untrained head of these shapes."""
        return Drafter(key, self, dtype, ids)

    @property
    def has_fixed_tree(self) -> bool:
        """Whether what is drafted is no search and no draw, as in the configs of all heads."""
        return False

    @property
    def beyond_the_papers(self) -> list[str]:
        """What the head has that the paper's and Apple's architecture have no place for, in words."""
        return [words for name, words in PARTS.items() if getattr(self, name)]

    @property
    def projects(self) -> bool:
        """Whether the head has an ``input_proj``."""
        return self.exit_size != 2 * self.hidden_size


def full(vocab_size: int, hidden_size: int, num_blocks: int = 2) -> DrafterConfig:
    """The paper's head: it exits at twice the target's width into an LM head of its own."""
    return DrafterConfig(vocab_size=vocab_size, hidden_size=hidden_size, exit_size=2 * hidden_size, num_blocks=num_blocks)


def slim(vocab_size: int, hidden_size: int, num_blocks: int = 2) -> DrafterConfig:
    """A head that exits at the target's width into the target's own LM head."""
    return DrafterConfig(vocab_size=vocab_size, hidden_size=hidden_size, exit_size=hidden_size, num_blocks=num_blocks, tied=True)


class Drafter(nnx.Module):
    """The head's steps, so that training and beam search can each arrange them: ``context`` once, then ``advance``, ``exit``
    and ``unembed`` for every drafted token.

    The residual blocks start at zero (an untrained block is the identity). ``ids``: the draft vocabulary, where the config
    has one; ascending, so that among equal logits the smaller id comes first, as it does without a draft vocabulary.
    """

    def __init__(self, key, config: DrafterConfig, dtype=jnp.float32, ids: jax.Array | None = None):
        D, E, U = config.hidden_size, config.exit_size, config.draft_vocab or config.vocab_size
        keys = jax.random.split(key, 4)
        of_bigram, of_gates = jax.random.split(jax.random.fold_in(key, 1))
        depths = functools.partial(parts.Depths, jax.random.fold_in(key, 3), D, len(config.depths), dtype)
        self.config = config
        linear = functools.partial(layers.Linear, split=layers.COLUMNS, dtype=dtype)
        self.rnn_w = linear(keys[0], (D, D)) if config.rnn else None
        self.rnn_u = linear(keys[1], (D, D), bias=True) if config.rnn else None
        self.input_proj = linear(keys[2], (2 * D, E), bias=True) if config.projects else None
        self.blocks = nnx.List([linear(keys[3], (E, E), bias=True, scale=0.0) for _ in range(config.num_blocks)])
        by_token = bool(config.candidates)  # where the candidate head has the LM head, and the bigram term's columns
        self.lm_head = None if config.tied or by_token else layers.param(keys[3], (E, U), layers.COLUMNS, dtype)
        bigram = functools.partial(parts.Bigram, of_bigram, config.vocab_size, U, config.bigram, dtype, not by_token)
        self.bigram = bigram() if config.bigram else None
        sizes = U, E, config.candidate_rank, config.bigram, config.tied, dtype
        self.candidates = CandidateHead(jax.random.fold_in(key, 2), *sizes) if by_token else None
        self.depths = depths() if config.depths else None
        self.gates = parts.Gates(of_gates, D, dtype) if config.gated else None
        self.ids = draft_ids.as_ids(jnp.arange(U) if ids is None else ids) if config.draft_vocab else None

    def advance(self, state: jax.Array, embedding: jax.Array) -> jax.Array:
        """The recurrent state ``[..., D]`` after one more token; both arguments ``[..., D]``."""
        if self.rnn_w is None:
            return state + embedding
        if self.gates is None:
            return layers.gather_features(jax.nn.silu(self.rnn_w(embedding) + self.rnn_u(state)))
        keep, read = self.gates(state, embedding)
        new = layers.gather_features(jax.nn.silu(self.rnn_w(embedding) + self.rnn_u(read * state)))
        return keep * state + (1 - keep) * new

    def context(self, h: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The part of `exit` that depends on h alone, computed once for all beams and steps: h ``[..., D]``, and h's share
        of the first layer that reads ``[h ; s]``. Of a head that reads features they stand behind h, ``[..., D + F*D]``."""
        first = self._first()
        h = h if self.depths is None else self.depths(h)
        return h, None if first is None else layers.times(h, self.weight_of_h()) + first.bias[...]

    def weight_of_h(self) -> nnx.Param | jax.Array | None:
        """The matrix ``[D, out]`` that `context` multiplies h by; None for a head without such a layer."""
        first = self._first()
        return None if first is None else layers.halves(first)[0]

    def exit(self, context: tuple[jax.Array, jax.Array | None], state: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        """``[..., E]``, what the LM head reads, from `context` and the state ``[..., D]``; with a bigram term ``[..., E + r]``, for
        which the tokens ``[...]`` are needed that the state has read last."""
        h, share = context
        first, rest = self._first(), self.blocks
        first_out = None if first is None else share + layers.times(state, layers.halves(first)[1])
        if self.input_proj is not None:
            z = layers.gather_features(first_out)
        else:
            z = jnp.concatenate(jnp.broadcast_arrays(h, state), axis=-1)
            if first is not None:
                z, rest = z + layers.gather_features(jax.nn.silu(first_out)), self.blocks[1:]
        for block in rest:
            z = z + layers.gather_features(jax.nn.silu(block(z)))
        return z if self.bigram is None else jnp.concatenate([z, self.bigram.of(tokens)], axis=-1)

    def _first(self) -> layers.Linear | layers.SplitLinear | None:
        """The first layer that reads ``[h ; s]``; None for a head without an ``input_proj`` and without blocks."""
        if self.input_proj is not None:
            return self.input_proj
        return self.blocks[0] if self.blocks else None

    def split(self) -> "Drafter":
        """The head with that layer as a `layers.SplitLinear`, as it decodes; the same numbers."""
        first = self._first()
        if not isinstance(first, layers.Linear):
            return self
        copy = nnx.clone(self)
        if self.input_proj is not None:
            copy.input_proj = layers.SplitLinear(first)
        else:
            copy.blocks = nnx.List([layers.SplitLinear(first), *copy.blocks[1:]])
        return copy

    def unembed(self, exit_: jax.Array, target: Target) -> jax.Array:
        """float32 logits ``[..., U]`` (V without a draft vocabulary), split over ``model`` in U; ``exit_`` is what `exit` gives.

        A tied head with a draft vocabulary gathers its columns here, each time; `vocabulary.materialise_columns` gathers them once.
        """
        if self.bigram is None:
            return unembed(target.config, exit_, self.columns(target))
        z, row = parts.split_exit(exit_, self.bigram.columns)
        return unembed(target.config, z, self.columns(target), layers.times(row, self.bigram.columns))

    def text_exits(
        self, hidden_BTD: jax.Array, read: Callable[[int], tuple[jax.Array, jax.Array]], positions: int
    ) -> list[jax.Array]:
        """What `exit` gives at every place of a text for each of K drafted positions, K arrays ``[B, T, E]``.

        Args:
          hidden_BTD: what the target shows of the text (`Pass.shown`).
          read: the tokens ``[B, T]`` that are read before position i is drafted, and their embeddings ``[B, T, D]``.
        """
        context, state_BTD, exits = self.context(hidden_BTD), jnp.zeros_like(hidden_BTD[..., : self.config.hidden_size]), []
        for i in range(positions):
            tokens_BT, embedding_BTD = read(i)
            state_BTD = self.advance(state_BTD, embedding_BTD)
            exits.append(self.exit(context, state_BTD, tokens_BT))
        return exits

    def weights_per_position(self) -> int:
        """How many numbers of the head a drafted position is multiplied by, without a target's LM head."""
        others = self.table(), self.depths
        return sum(leaf.size for leaf in jax.tree.leaves(self)) - sum(leaf.size for leaf in jax.tree.leaves(others))

    def weights_per_place(self) -> int:
        """How many a place is multiplied by once, whatever is drafted from there: those of the features."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.depths))

    def table(self) -> nnx.Param | None:
        """The matrix of which a drafted token reads one row, ``[V, r]``; None for a head without a bigram term."""
        return None if self.bigram is None else self.bigram.rows

    def own_columns(self) -> jax.Array | parts.OwnColumns | None:
        """The head's own LM head ``[E, U]``, None where it is the target's; with a bigram term also the columns of that."""
        own_EU = None if self.lm_head is None else layers.gather_weight(self.lm_head, layers.COLUMNS)
        return (
            own_EU if self.bigram is None else parts.OwnColumns(own_EU, layers.gather_weight(self.bigram.columns, layers.COLUMNS))
        )

    def columns(self, target: Target) -> jax.Array:
        """The LM head ``[E, U]``: the head's own, or its columns of the target's."""
        own = self.own_columns()
        own_EU = own.lm_head if isinstance(own, parts.OwnColumns) else own
        return target.columns(self.ids) if own_EU is None else own_EU

    def drafted(self, values: jax.Array) -> jax.Array:
        """Selects from values of all tokens ``[..., V]`` those of the tokens that can be drafted ``[..., U]``, sharded
        alike."""
        return draft_ids.drafted(self.ids, values)

    def token_ids(self, index_BW: jax.Array) -> jax.Array:
        """The target's ids of the tokens with these columns of `unembed`, both ``[B, W]`` int32."""
        return draft_ids.token_ids(self.ids, index_BW)

"""The same target and tokenizer with another way to draft, to compare ways without reading the weights again."""

from infer.pair import Pair
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.errors import BadInput


def with_proposer(pair: Pair, proposer: Proposer | None) -> Pair:
    """A pair that drafts so, on the weights of another; None: plain decoding. It stops at the same ids."""
    engine = pair.engine
    stop_ids = [int(token) for token in engine.stop_ids if token >= 0]
    return Pair(Engine(engine.target, proposer, stop_ids), pair.tokenizer)


def with_shape(pair: Pair, shape: Shape) -> Pair:
    """A pair whose head searches in this shape.

    Raises:
      BadInput: the pair has no head.
    """
    if not isinstance(pair.engine.proposer, Recurrent):
        raise BadInput("only a head searches in a shape, and this pair has none")
    return with_proposer(pair, Recurrent(pair.engine.proposer.head, shape))

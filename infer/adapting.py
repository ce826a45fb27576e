"""The shapes that a running batch may draft in, besides the one that suits it usually, where nobody said how to draft."""

from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Shape


def others(usual: Shape | None) -> tuple[Shape, ...]:
    """A smaller tree, for more busy rows than the usual one is made for, and plain decoding. usual: None where no head searches.

    Each costs a compiled program for every step of the ladder of rows, so there are few.
    """
    return (AUTOREGRESSIVE,) if usual is None or usual.tree != "search" else (smaller(usual), AUTOREGRESSIVE)


def smaller(usual: Shape) -> Shape:
    """A quarter of the beams, two thirds as deep: 1x2 of 2x2, 1x2 of 1x3, 2x4 of 8x5."""
    return Shape(-(-usual.width // 4), usual.length - usual.length // 3, draft_top_k=usual.draft_top_k)

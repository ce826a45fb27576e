"""From names and options of what drafts to the library's types: a lookup, a head, or both. Not here: weights (`pair.py`)."""

from infer.drafting import LOOKUP, has_head
from redrafter_jax.decode.propose.heads import proposer_of_head
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.lookup_sizes import LookupSizes
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files.heads import Head


def named_lookup(given: object) -> Lookup | None:
    """The lookup that a caller means by "lookup" or by a `Lookup`; None for anything else."""
    return given if isinstance(given, Lookup) else None if has_head(given) else Lookup()


def check_drafting(shape: Shape | None, with_head: bool, alone: Lookup | None, beside: object, lookup: Lookup | None) -> None:
    """Raises BadInput where these exclude each other: ``alone`` is a lookup without a head, ``lookup`` the one that
    ``beside`` names."""
    if beside is not None and lookup is None:
        raise BadInput(f"beside should be '{LOOKUP}' or a Lookup, not {shown(beside)}")
    if beside is not None and not with_head:
        raise BadInput("beside goes with a head; a lookup alone is given as the drafter")
    if alone is not None and shape is not None:
        raise BadInput("shape is for the search of a head; leave it out with a lookup as the drafter")


def lookup_of(wanted: LookupSizes | None) -> Lookup | None:
    """The lookup that was asked for."""
    return None if wanted is None else Lookup(wanted.longest, wanted.shortest, wanted.length, wanted.width)


def drafted_length(shape: Shape | None, lookup: Lookup | None) -> int:
    """L of a round of `proposer_of`, known before the head is read; 0 for plain decoding."""
    return max((each.length for each in (shape, lookup) if each is not None), default=0)


def proposer_of(head: Head | None, shape: Shape, lookup: Lookup | None = None) -> Proposer | None:
    """What drafts: a head, a lookup, or both at once, within the shape's budget of nodes; None for plain decoding."""
    if head is None:
        return lookup
    alone = proposer_of_head(head, shape)
    return alone if lookup is None else Union(alone, lookup, shape.budget)

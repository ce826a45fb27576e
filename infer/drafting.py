"""What drafts, as commands and callers name it: a head by its folder, `lookup` (no weights), or both. Nothing here starts JAX."""

from collections.abc import Sequence

from infer.options import check_each, check_range, flag
from redrafter_jax.decode.propose.lookup_sizes import RANGES, LookupSizes
from redrafter_jax.errors import BadInput

LOOKUP = "lookup"  # a --drafter of this name has no weights; a folder that is called so is ./lookup


def has_head(drafter: object) -> bool:
    """Whether a drafter of this name is a head; a `pathlib.Path` always names one."""
    return not (isinstance(drafter, str) and drafter == LOOKUP)


def wanted_lookup(drafter: str | None, beside: str | None, length: int | None, match: tuple[int, int] | None) -> LookupSizes | None:
    """The lookup that the options ask for, alone or beside a head; None for a head alone. ``match``: longest, shortest."""
    if has_head(drafter) and beside is None:
        return None
    given = {} if length is None else {"length": length}
    return LookupSizes(**given) if match is None else LookupSizes(*match, **given)


def check(drafter: str | None, beside: str | None, length: int | None, match: tuple[int, int] | None) -> None:
    """Checks the options of a lookup: their ranges, which of them exclude each other, and that there is a lookup.

    Raises:
      BadInput: one sentence that begins with the option.
    """
    if beside is not None and not has_head(drafter):
        raise BadInput("--with lookup goes beside a head, and --drafter lookup has none; leave out one of them")
    given = [name for name, value in (("lookup_length", length), ("lookup_match", match)) if value is not None]
    if given and wanted_lookup(drafter, beside, None, None) is None:
        raise BadInput(f"{flag(given[0])} goes with --drafter lookup or --with lookup")
    check_range("lookup_length", length, *RANGES["length"])
    if match is not None:
        check_each("lookup_match", match, *RANGES["longest"])
        if match[0] < match[1]:
            raise BadInput(f"--lookup-match should be the longest and then the shortest match, not {match[0]} {match[1]}")


def check_search(drafter: str | None, given: Sequence[str]) -> None:
    """Raises BadInput for options of a head's search, which were ``given``, where no head searches."""
    if given and not has_head(drafter):
        raise BadInput(f"{flag(given[0])} is for the search of a head; leave it out with --drafter lookup")

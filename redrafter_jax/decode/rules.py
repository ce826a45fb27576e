"""The rules by which a draft is accepted: data, named once. Nothing here starts JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which drafts a row that samples accepts. A greedy row has no use for it: it accepts the target's own choice.

    exact: a draft is accepted if it is the token that the target samples there, so the text has exactly the target's
    distribution. Otherwise it is accepted if it is likely enough (`verify`), which changes the distribution.
    shown: the drafter ranks its candidates with the noise that the target samples with.
    """

    name: str
    exact: bool
    shown: bool


RULES = {
    rule.name: rule
    for rule in (
        Rule("coupled", exact=True, shown=True),
        Rule("independent", exact=True, shown=False),
        Rule("typical", exact=False, shown=False),
    )
}
DEFAULT_RULE = "coupled"

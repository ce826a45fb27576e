"""The rules by which a draft is accepted: data, named once. Nothing here starts JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which drafts a row that samples accepts. A greedy row has no use for it: it accepts the target's own choice.

    exact: a draft is accepted if it is the token that the target samples there, so the text has exactly the target's
    distribution. Otherwise it is accepted if it is likely enough (`verify`), which changes the distribution.
    shown: the drafter ranks its candidates with the noise that the target samples with.
    drawn: drafts are drawn from the drafter's own distribution q, and accepted with probability min(1, p / q) where the target's
    is p (`reject`). The text has exactly the target's distribution, but it depends on the drafts too: the same seed gives the
    same text only behind the same drafter.
    """

    name: str
    exact: bool
    shown: bool
    drawn: bool = False


RULES = {
    rule.name: rule
    for rule in (
        Rule("coupled", exact=True, shown=True),
        Rule("independent", exact=True, shown=False),
        Rule("rejection", exact=True, shown=False, drawn=True),
        Rule("typical", exact=False, shown=False),
    )
}
DEFAULT_RULE = "coupled"

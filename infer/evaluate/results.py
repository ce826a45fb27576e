"""What the methods did, as JSON can hold it: rows of figures, a line for each reply, and whose tokens are not plain decoding's."""

import itertools
from collections.abc import Sequence

from infer.evaluate import figures
from infer.evaluate.contest import Heat
from infer.evaluate.entrants import Entrant
from infer.turns import Turn
from redrafter_jax.decode.reply import Reply


def of(heats: Sequence[Heat], field: Sequence[Entrant], plain: Entrant, numbers: str) -> dict:
    """The result of a contest that was run; ``numbers``: the formats that were computed in."""
    return {
        "methods": [entrant.described() for entrant in field],
        "rows": [row for heat in heats for row in _rows(heat, field, plain)],
        "refused": refused(heats),
        "differences": _differences(heats, field, plain, numbers),
        "replies": [line for heat in heats for entrant in field for line in _lines(heat, entrant, plain)],
    }


def refused(heats: Sequence[Heat]) -> list[str]:
    """Why questions were left out, each said once."""
    return list(dict.fromkeys(sentence for heat in heats for sentence in heat.turns.refused.values()))


def _rows(heat: Heat, field: Sequence[Entrant], plain: Entrant) -> list[dict]:
    """A row of figures for each method, of each category and of all (None)."""
    categories: list[str | None] = [*heat.suite.distinct, None]
    found = []
    for category in categories:
        at = [place for place, group in enumerate(heat.groups) if category in (None, group.category)]
        theirs = [heat.works[plain.name][place] for place in at]
        for entrant in field:
            own = [heat.works[entrant.name][place] for place in at]
            sampling = entrant.sampling(heat.temperature)
            place = {"suite": heat.suite.name, "temperature": heat.temperature, "category": category}
            place |= {"method": entrant.name, "kind": entrant.method.kind}
            found.append(place | {"same_text": sampling.same_text, "exact": sampling.is_exact} | figures.row(own, theirs))
    return found


def _differences(heats: Sequence[Heat], field: Sequence[Entrant], plain: Entrant, numbers: str) -> list[str]:
    """A sentence for each method whose text has to be plain decoding's and is not."""
    found = []
    for heat, entrant in itertools.product(heats, field):
        place = _first_difference(heat, entrant, plain) if entrant.sampling(heat.temperature).same_text else None
        if place is not None:
            of = f"{entrant.name} at temperature {heat.temperature:g} differs from plain decoding"
            found.append(f"{of} at {place[0].where} from new token {place[1]} on ({numbers})")
    return found


def _first_difference(heat: Heat, entrant: Entrant, plain: Entrant) -> tuple[Turn, int] | None:
    """The first turn whose tokens differ, and where."""
    for number, reply in sorted(heat.replies[entrant.name].items()):
        at = figures.first_difference(reply.token_ids, heat.replies[plain.name][number].token_ids)
        if at is not None:
            return heat.turns.all[number], at
    return None


def _lines(heat: Heat, entrant: Entrant, plain: Entrant) -> list[dict]:
    """A line for each reply of a method."""
    return [_line(heat, number, reply, entrant, plain) for number, reply in sorted(heat.replies[entrant.name].items())]


def _line(heat: Heat, number: int, reply: Reply, entrant: Entrant, plain: Entrant) -> dict:
    turn = heat.turns.all[number]
    line = {"suite": heat.suite.name, "temperature": heat.temperature, "method": entrant.name}
    line["category"] = heat.suite.categories[turn.index]
    return turn.label(line) | {
        "tokens": len(reply.token_ids),
        "finish_reason": reply.finish_reason,
        "rounds": reply.rounds,
        "tokens_per_step": reply.tokens_per_step,
        "accepted_histogram": reply.accepted_histogram,
        "metrics": reply.metrics,
        "seconds": round(reply.seconds, 6),
        "first_token_seconds": round(reply.first_token_seconds, 6),
        "seed": reply.seed,
        "identical": reply.token_ids == heat.replies[plain.name][number].token_ids,
    }

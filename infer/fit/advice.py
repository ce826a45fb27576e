"""What `infer.fit` recommends: a mesh and a beam shape by the table's rows, until one is found that fits with all layers."""

import dataclasses
from collections.abc import Callable

from infer.fitting import MAX_RETRIES


@dataclasses.dataclass(frozen=True)
class Advice:
    """For one batch: the mesh whose autoregressive step is the shortest of those that fit, and the beam shape of most nodes
    whose round costs at most ``most`` of these steps; None where there is none. cost: see `over_plain`."""

    batch: int
    mesh: tuple[int, int] | None
    shape: str | None
    cost: float | None


def advise(rows: list[dict], batch: int, most: float) -> Advice:
    """The recommendation that follows from the table's rows."""
    fitting = [row for row in rows if row["batch"] == batch and row["fits"]]
    plain = {tuple(row["mesh"]): row for row in fitting if row["shape"] == "AR"}
    if not plain:
        return Advice(batch, None, None, None)
    split = min(plain, key=lambda split: plain[split]["round_seconds"])
    there = [row for row in fitting if tuple(row["mesh"]) == split and row["shape"] != "AR"]
    affordable = [row for row in there if over_plain(row, plain[split]) <= most]
    if not affordable:
        return Advice(batch, split, None, None)
    best = max(affordable, key=lambda row: row["nodes"])
    return Advice(batch, split, best["shape"], over_plain(best, plain[split]))


def over_plain(row: dict, plain: dict) -> float:
    """How many plain steps a round costs: the larger of the ratio of the compiler's cycles and that of the floors. The
    ratio of cycles alone would make a round seem cheaper than it can be where the compiler's plain step is far above its
    floor."""
    floors = sum(row["floor_seconds"].values()) / sum(plain["floor_seconds"].values())
    return max(row["round_seconds"] / plain["round_seconds"], floors)


def find_advice(
    rows: list[dict], batch: int, most: float, checked: Callable[[Advice], list[dict]]
) -> tuple[Advice, list[dict], list[tuple[Advice, list[dict]]]]:
    """The recommendation that fits with all layers.

    Args:
      checked: gives the checks (`points.check`) of a recommendation; it is called for at most 1 + `MAX_RETRIES` of them.

    Returns:
      The recommendation, without a mesh if nothing fits; its checks; and those made before that do not fit, with theirs.
    """
    refused = []
    for _ in range(1 + MAX_RETRIES):
        advice = advise(rows, batch, most)
        checks = checked(advice) if advice.mesh else []
        if all(one["fits"] for one in checks):
            return advice, checks, refused
        refused.append((advice, checks))
        rows = without(rows, advice, checks)
    for advice, checks in refused:  # no tries are left; each of them checked plain decoding too
        plain = [one for one in checks if one["what"] != "round"]
        if all(one["fits"] for one in plain):
            return dataclasses.replace(advice, shape=None, cost=None), plain, refused
    return Advice(batch, None, None, None), [], refused


def without(rows: list[dict], advice: Advice, checks: list[dict]) -> list[dict]:
    """The rows, with those that the checks refuse marked as not fitting: all rows of the mesh, where plain decoding does
    not fit; else its shapes, where the prefill leaves no room for a head; else the one shape whose round does not fit."""
    failed = {one["what"]: one for one in checks if not one["fits"]}
    of_mesh = "step" in failed or ("prefill" in failed and not failed["prefill"]["fits_without_head"])

    def goes(row: dict) -> bool:
        if row["batch"] != advice.batch or tuple(row["mesh"]) != advice.mesh:
            return False
        return of_mesh or (row["shape"] != "AR" if "prefill" in failed else row["shape"] == advice.shape)

    return [row | {"fits": False} if goes(row) else row for row in rows]

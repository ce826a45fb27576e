"""What `infer.fit` recommends by its table, and how it says so."""

import re

import pytest
import tyro

from infer.fit import report as fit_report
from infer.fit.advice import Advice, find_advice
from infer.fitting import MAX_RETRIES
from infer.generate import __main__ as generate


def table() -> list[dict]:
    """Rows of two meshes at batch 8: 1x8, whose plain step is the shorter, and 2x4."""
    rows = []
    for mesh, factor in (([1, 8], 1), ([2, 4], 2)):
        for shape, nodes, cost in (("AR", 1, 1), ("4x2", 9, 1.1), ("16x4", 65, 1.2)):
            facts = {"mesh": mesh, "batch": 8, "shape": shape, "nodes": nodes, "fits": True}
            rows.append(facts | {"round_seconds": factor * cost, "floor_seconds": {"verify": factor * cost}})
    return rows


def checker(refuses):
    """Checks as `plan.check` makes them; ``refuses``: (mesh, shape or None, what) -> None or the bytes of what does not fit."""

    def checked(advice: Advice) -> list[dict]:
        found = []
        for what in ("step", "round", "prefill") if advice.shape else ("step", "prefill"):
            bad = refuses(advice.mesh, advice.shape, what)
            found.append({"what": what, "held": None if bad else 1 << 30, "fits": not bad, "fits_without_head": bad != "all"})
        calls.append((advice.mesh, advice.shape))
        return found

    calls = checked.calls = []
    return checked


@pytest.mark.parametrize(
    ("refuses", "advised"),
    [
        (lambda mesh, shape, what: False, [((1, 8), "16x4")]),
        (lambda mesh, shape, what: what == "round" and shape == "16x4", [((1, 8), "16x4"), ((1, 8), "4x2")]),
        (lambda mesh, shape, what: what == "prefill" and shape, [((1, 8), "16x4"), ((1, 8), None)]),
        (lambda mesh, shape, what: "all" if what == "prefill" and mesh == (1, 8) else None, [((1, 8), "16x4"), ((2, 4), "16x4")]),
        (lambda mesh, shape, what: what == "step" and mesh == (1, 8), [((1, 8), "16x4"), ((2, 4), "16x4")]),
    ],
    ids=["all fits", "a round", "a prefill beside the head", "a prefill", "a step"],
)
def test_what_is_recommended_fits_with_all_layers(refuses, advised):
    checked = checker(refuses)
    advice, checks, refused = find_advice(table(), 8, 1.5, checked)
    assert checked.calls == advised
    assert (advice.mesh, advice.shape) == advised[-1] and all(one["fits"] for one in checks)
    assert [(one.mesh, one.shape) for one, _ in refused] == advised[:-1]


def test_where_nothing_fits_with_all_layers_that_is_said():
    checked = checker(lambda *_: "all")
    advice, checks, refused = find_advice(table(), 8, 1.5, checked)
    assert advice.mesh is None and len(refused) == 2  # both meshes
    said = fit_report.advised(advice, 1.5, "--dtype bfloat16", checks, refused, 16 << 30)
    assert "batch 8: none of these 2 fits" in said and "step ? GiB" in said and "nan" not in said


def test_recommendations_are_made_a_few_times_only():
    rows = [row | {"mesh": [1, count]} for count in range(9) for row in table()[:3]]
    checked = checker(lambda *_: "all")
    advice, checks, refused = find_advice(rows, 8, 1.5, checked)
    assert advice.mesh is None and len(checked.calls) == 1 + MAX_RETRIES
    assert "fits, and others were not tried; take more chips" in fit_report.advised(
        advice, 1.5, "--dtype bfloat16", checks, refused, 16 << 30
    )


def test_where_no_round_fits_plain_decoding_that_does_is_what_is_left():
    rows = [row | {"shape": f"{row['nodes']}x{count}"} for count in range(1, 9) for row in table()[:1] + table()[2:3]]
    rows = [table()[0], *(row for row in rows if row["nodes"] > 1)]
    checked = checker(lambda mesh, shape, what: what == "round")
    advice, checks, refused = find_advice(rows, 8, 1.5, checked)
    assert (advice.mesh, advice.shape) == ((1, 8), None) and len(refused) == 1 + MAX_RETRIES
    assert [one["what"] for one in checks] == ["step", "prefill"] and all(one["fits"] for one in checks)
    said = fit_report.advised(advice, 1.5, "--dtype bfloat16", checks, refused, 16 << 30)
    assert "--batch-size 8 --mesh 1 8 --dtype bfloat16 --decoding autoregressive: no beam shape tried fits there and" in said


def test_the_advice_is_in_options_of_generate():
    said = fit_report.advised(Advice(8, (2, 4), "16x4", 1.25), 1.5, "--dtype bfloat16", [], [], 16 << 30)
    given = re.search(r"batch 8: (.*?): a round costs about 1.25", said)[1].split()
    options = tyro.cli(generate.Options, args=given, config=(tyro.conf.FlagCreatePairsOff,))
    assert (options.batch_size, options.mesh, options.dtype) == (8, (2, 4), "bfloat16")
    assert (options.beam_width, options.beam_length) == (16, 4)

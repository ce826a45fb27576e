"""A small model as the drafter in `infer.fit`: what it holds and reads, by hand, with no compiler."""

import dataclasses
import json

import pytest

from infer.fit import __main__ as fit
from redrafter_jax.devices import placement
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.slices import roofline

FLOORS = ["--model", "smollm-360m", "--topology", "v5e:2x4", "--mesh", "8", "1", "--floors", "--batch", "8"]
SMALL = ["--method", "small", "--draft-model", "smollm-135m", "--beams", "1x4", "4x4"]


def floors(capsys, *more: str) -> dict:
    assert fit.main([*FLOORS, "--json", *more]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    return row


def test_a_small_model_holds_its_weights_and_a_cache_of_its_own(capsys):
    small = SHAPES["smollm-135m"]
    with_model, with_head = floors(capsys, *SMALL), floors(capsys, "--head", "slim", "--blocks", "1", "--beams", "1x4", "4x4")
    own = placement.bytes_of_target(small, "bfloat16")
    cache = 4096 * placement.bytes_of_token(small, "bfloat16")  # of the one row of a chip
    head = 2 * (2 * 960 * 960 + 2 * 960 * 960 + 960 * 960)  # the recurrence, [h ; s] to D, a block
    assert with_model["resident"] - with_head["resident"] == pytest.approx(own + cache - head, rel=0.02)


def test_a_draft_of_a_small_model_is_passes_of_it():
    target, small = SHAPES["smollm-360m"], SHAPES["smollm-135m"]
    setting = roofline.Setting(target, small, 1, 1, 1, 4096, 2)
    alone = dataclasses.replace(setting, config=small)
    chain, search = roofline.draft(setting, 1, 4, 2), roofline.draft(setting, 4, 4, 6)
    assert chain.bytes == search.bytes == 4 * roofline.verify(alone, 1).bytes  # all passes read the weights and the cache once
    assert search.flops / chain.flops == pytest.approx((6 + 3 * 4) / (2 + 3), rel=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "small"], "--method small and --draft-model go together"),
        (["--draft-model", "smollm-135m"], "--method small and --draft-model go together"),
        (["--method", "small", "--draft-model", "llama-7b"], "--draft-model should share the vocabulary of 49152"),
        (["--method", "small", "--draft-model", "none"], "--draft-model should be one of"),
    ],
)
def test_what_cannot_draft_is_one_sentence(options, words, capsys):
    assert fit.main([*FLOORS, *options]) == 2
    assert words in capsys.readouterr().err

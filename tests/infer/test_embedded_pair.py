"""The pair that comes with the project: it loads, fits its bound, and speculation leaves its text as it is."""

import pytest

import infer
from infer.evaluate import entrants, methods
from infer.pair import EMBEDDED, HEADS, MEDUSA, SMALL_MODEL
from redrafter_jax.decode.engine import Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import placement
from redrafter_jax.files import weights

PROMPTS = ["def read(self, size):\n", "class Node:\n    def __init__(self", "import os\nimport sys\n\n\ndef main():\n"]


@pytest.fixture(scope="module")
def pair():
    return infer.load(shape=Shape(4, 4))


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(), marks=pytest.mark.slow),
        Sampling(1.0),
        pytest.param(Sampling(0.7, 50, 0.95), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("head", [HEADS["slim"], HEADS["best"], pytest.param(HEADS["full"], marks=pytest.mark.slow)])
def test_speculation_changes_no_token_of_the_embedded_target(head, sampling):
    pair = infer.load(str(EMBEDDED / "target"), str(EMBEDDED / head), shape=Shape(4, 4))
    prompts = [pair.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    fast = list(pair.engine.generate(prompts, sampling, Limits(200), batch=3))
    slow = list(pair.engine.autoregressive().generate(prompts, sampling, Limits(200), batch=3))
    assert [reply.token_ids for reply in fast] == [reply.token_ids for reply in slow]
    accepted = sum(reply.tokens_per_step for reply in fast) / len(fast)
    assert accepted > 1.3


def test_it_writes_python(pair):
    text = pair.complete("class Node:\n    def __init__(self", max_new_tokens=60).text
    assert "self." in text and "\n" in text


def test_a_tied_output_matrix_is_counted_once(pair):
    """7.3 M and 1.2 M, as the README of the pair says."""
    small = weights.load_target(EMBEDDED / "small_model")
    assert [round(placement.parameters_of(model) / 1e6, 1) for model in (pair.engine.target, small, None)] == [7.3, 1.2, 0]


@pytest.mark.parametrize("kind", methods.WITH_FOLDER)
def test_what_drafts_for_the_embedded_target_is_found_by_its_kind(kind):
    method = methods.read(f"{kind}:embedded")
    (nominee,) = entrants.find(None, [method], ("float32", None), (1, 1), 1, 16)
    assert entrants.KIND_OF[type(nominee.resolved.drafter_config)] == kind and nominee.shape.nodes > 1


def test_a_target_and_its_heads_are_at_most_24_megabytes_and_what_else_drafts_at_most_5():
    beside = (MEDUSA, SMALL_MODEL)
    sizes = {
        part: sum(file.stat().st_size for file in (EMBEDDED / part).iterdir()) for part in ("target", *HEADS.values(), *beside)
    }
    assert sum(sizes.values()) - sum(sizes[part] for part in beside) <= 24e6
    assert sum(sizes[part] for part in beside) <= 5e6
    rest = [file for file in EMBEDDED.rglob("*") if file.is_file() and file.relative_to(EMBEDDED).parts[0] not in sizes]
    assert sum(file.stat().st_size for file in rest) <= 1e5

"""What a request may ask for is checked from Python as by the commands, in the same words."""

import dataclasses
import typing

import numpy as np
import pytest

from infer import options
from infer.benchmark import __main__ as benchmark
from infer.generate import __main__ as generate
from infer.generate import checks
from redrafter_jax import Limits, Sampling
from redrafter_jax.decode.batch import make_requests
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.request import MAX_NODES
from redrafter_jax.decode.rules import DEFAULT_RULE, RULES
from redrafter_jax.errors import BadInput
from tests.support import MODELS

NAN = float("nan")
FIELDS = dict.fromkeys(("temperature", "top_k", "top_p", "rule"), Sampling)
FIELDS |= dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs"), Sampling)
FIELDS |= dict.fromkeys(("new", "length", "min_new"), Limits)
FIELDS |= dict.fromkeys(("width", "budget", "draft_top_k", "tree"), Shape)
OPTIONS = {
    "new": "max_new_tokens",
    "min_new": "min_new_tokens",
    "length": "max_length",
    "width": "beam_width",
    "budget": "node_budget",
}


def refusal(make, *given, **named) -> str:
    with pytest.raises(BadInput) as caught:
        make(*given, **named)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value) and "--" not in str(caught.value)
    return str(caught.value)


def requests(prompts, seeds, sampling=Sampling(), limits=Limits(), stop_ids=()):
    """Of a target of 503 tokens and a context of 16."""
    return make_requests(prompts, sampling, limits, seeds, stop_ids, 503, 16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-1, NAN, 1e-30, 1000.0, float("inf"), 10**400)),
        *(("top_p", value) for value in (0, 5, -0.1, NAN)),
        *(("top_k", value) for value in (-3, 10**7)),
        *(("repetition_penalty", value) for value in (0, -1, NAN, 1e-3, 101, float("inf"))),
        *((name, value) for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 3, NAN)),
        *(("logprobs", value) for value in (-1, 101)),
        *(("min_new", value) for value in (-1, 10**9)),
        *(("new", value) for value in (0, -1, 10**9)),
        *(("length", value) for value in (-1, 1, 10**9)),
        *(("width", value) for value in (0, -1, 10**9)),
        *(("budget", value) for value in (1, -1, 10**9)),
        *(("draft_top_k", value) for value in (-1, 10**9)),
    ],
)
def test_python_refuses_a_number_out_of_range_in_the_words_of_the_command(field, value):
    said = refusal(FIELDS[field], **{field: value})
    with pytest.raises(BadInput) as caught:
        checks.alone(dataclasses.replace(generate.Options(), **{OPTIONS.get(field, field): value}))
    words = str(caught.value).split(" (for no draft")[0].partition(" should be ")[2]
    assert said.startswith(f"{field} should be ") and said.endswith(words)


@pytest.mark.parametrize("field", FIELDS)
def test_python_refuses_what_is_no_number_or_no_name(field):
    is_whole = field not in ("temperature", "top_p", "rule", "tree") and not field.endswith("_penalty")
    for value in ("x", None, b"1", [1], True, *([1.5] if is_whole else [])):
        assert refusal(FIELDS[field], **{field: value}).startswith(f"{field} should be ")


def test_the_rules_and_the_trees_are_named():
    assert refusal(Sampling, rule="couple") == "rule should be coupled, independent, rejection or typical, not 'couple'"
    assert refusal(Shape, tree="beam") == "tree should be beams, search or chains, not 'beam'"


def test_numbers_of_numpy_and_the_ends_of_every_range_are_taken():
    assert Sampling(np.float32(0.5), np.int64(3), np.float32(0.9)).top_k == 3
    assert Shape(np.int32(2), np.int64(2)).nodes == 5
    ends = (Sampling(0.01), Sampling(100), Limits(10**7, 10**7), Limits(1, 2), Shape(1, 0), Shape(MAX_NODES - 1, 1))
    assert all(dataclasses.replace(made) == made for made in ends)
    assert Shape(1024, 64, budget=MAX_NODES).nodes == MAX_NODES


def test_the_least_length_is_at_most_the_greatest():
    assert refusal(Limits, 5, min_new=6) == "min_new should be at most new, 5, not 6"
    assert Limits(5, min_new=5).min_new == 5


def test_a_tree_over_the_largest_is_refused_by_python_and_by_the_command():
    said = refusal(Shape, 1024, 64)
    assert said == "width 1024 and length 64 make 65537 nodes, over 4096; narrow them or give a budget"
    with pytest.raises(BadInput, match="--beam-width 1024 and --beam-length 64 make 65537 nodes, over 4096"):
        options.check_tree(1024, 64, 0)
    assert refusal(Shape, 1, 65) == "length should be 0 (no drafts) or from 1 to 64, not 65"


def test_more_beams_than_there_are_tokens_to_draft_are_refused():
    said = refusal(Shape(600, 2).check_vocabulary, 503)
    assert said == "width should be at most the target's vocabulary of 503, not 600"
    said = refusal(Shape(4, 2).check_vocabulary, 503, 3)
    assert said == "width should be at most the head's draft vocabulary of 3, not 4"
    said = refusal(Shape(2, 2, draft_top_k=10**6).check_vocabulary, 503)
    assert said == "draft_top_k should be at most the target's vocabulary of 503, not 1000000"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("def a", "should be a list of token ids, not 'def a'"),
        (b"\x01\x02", "should be a list of token ids, not b"),
        (None, "should be a list of token ids, not None"),
        (3, "should be a list of token ids, not 3"),
        (np.int64(3), "should be a list of token ids, not"),
        (["def a", "b"], "should hold token ids, which are whole numbers, not 'def a'"),
        ([[1, 2]], "should hold token ids, which are whole numbers, not [1, 2]"),
        ([1, 1.0], "should hold token ids, which are whole numbers, not 1.0"),
        ([1, None], "not None"),
        ([1, True], "not True"),
        (np.asarray([1.0, 2.5]), "whole numbers, not 1.0"),
        (np.asarray([[1, 2]]), "whole numbers, not [1, 2]"),
        ([1, 503], "token id 503 is outside the target's vocabulary (0 to 502)"),
        ([1, -5], "token id -5 is outside the target's vocabulary (0 to 502)"),
        (np.asarray([2**40]), f"token id {2**40} is outside"),
        ([10**400], "is outside the target's vocabulary"),
        ([], "a prompt is empty"),
        ([1] * 16, "a prompt has 16 tokens; at most 15 fit in a context of 16"),
    ],
    ids=str,
)
def test_a_prompt_that_is_no_list_of_known_ids_is_refused(prompt, words):
    said = refusal(requests, [[1], prompt], [0, 1])
    assert said.startswith("a prompt") and words in said and len(said) < 200


def test_seeds_and_batches_are_checked(mha):
    requests([np.asarray([1, 2], np.uint16), [np.int32(3)], (4,)], np.asarray([0, 2**32 - 1, 5]))
    for seed in (-1, 2**32, 1.5, True, None, "1"):
        assert "a seed should be from 0 to 4294967295, not" in refusal(requests, [[1]], [seed])
    assert refusal(requests, [[1], [2]], [0]) == "seeds should be 2, one for each prompt, not 1"
    assert refusal(lambda: next(Engine(mha[0], Recurrent(mha[1])).stream([], seeds=[]))) == "there should be at least one prompt"


def test_an_engine_decodes_no_ids_that_its_target_does_not_know(mha):
    engine = Engine(mha[0], Recurrent(mha[1], Shape(2, 2)))
    said = refusal(lambda: list(engine.generate([[1, 5000]])))
    assert said == "a prompt: token id 5000 is outside the target's vocabulary (0 to 502)"
    assert "a seed should be" in refusal(lambda: list(engine.generate([[1, 2]], seeds=[-1])))


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        (["--draft-top-k", "504"], "--draft-top-k"),
        (["--beams", "2x2", "504x2"], "--beams 504x2: its width"),
    ],
    ids=str,
)
def test_the_benchmark_drafts_no_more_than_its_vocabulary_has(capsys, options, subject):
    pair = ["--target", str(MODELS / "target_mha"), "--drafter", str(MODELS / "drafter_mha_rnn")]
    assert benchmark.main([*pair, "--max-new-tokens", "8", *options]) == 2
    assert capsys.readouterr().err == f"error: {subject} should be at most the target's vocabulary of 503, not 504\n"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        *(({"batch": value}, f"batch should be from 1 to 4096, not {value}") for value in (-1, 0, 1.5, 4097)),
        ({"limits": 5}, "limits should be Limits, such as Limits(new=128), not 5"),
        ({"sampling": 0.7}, "sampling should be a Sampling, such as Sampling(temperature=0.7), not 0.7"),
        ({"seeds": [1, 2]}, "seeds should be 1, one for each prompt, not 2"),
        *(({"seeds": value}, f"seeds should be a list, not {value!r}") for value in (5, "1", np.array(1))),
        *(({"prompts": value}, f"prompts should be a list, not {value!r}") for value in (5, "def a", None)),
    ],
    ids=str,
)
def test_an_engine_refuses_what_it_cannot_decode_with_when_it_is_called(mha, named, words):
    assert refusal(Engine(mha[0], Recurrent(mha[1])).generate, **({"prompts": [[1, 2]]} | named)) == words
    if "batch" not in named:
        assert refusal(lambda: next(Engine(mha[0], Recurrent(mha[1])).stream(**({"prompts": [[1, 2]]} | named)))) == words


def test_prompts_and_seeds_may_be_gone_through_once_alone(mha, monkeypatch):
    given = []
    monkeypatch.setattr(Engine, "_in_batches", lambda self, *parts: given.append(parts))
    Engine(mha[0], Recurrent(mha[1])).generate(iter([[1, 2], [3]]), seeds=iter([5, 6]))
    Engine(mha[0], Recurrent(mha[1])).generate(np.asarray([4]) for _ in range(3))
    assert [(len(requests), [request.seed for request in requests]) for requests, _ in given] == [(2, [5, 6]), (3, [0, 1, 2])]
    said = refusal(lambda: next(Engine(mha[0], Recurrent(mha[1])).stream([[1, 2]], rows=-1)))
    assert said == "rows should be 0 (as many as prompts) or from 1 to 4096, not -1"


@pytest.mark.parametrize("stop_ids", [[-5, 2], [503], [10**12], [1.5], [True]], ids=str)
def test_ids_that_the_target_does_not_know_end_no_reply(mha, stop_ids):
    said = refusal(lambda: Engine(mha[0], Recurrent(mha[1]), stop_ids=stop_ids))
    assert said == f"stop_ids should be token ids of the target's vocabulary, from 0 to 502, not {stop_ids[0]}"
    assert refusal(lambda: Engine(mha[0], Recurrent(mha[1]), stop_ids=2)) == "stop_ids should be a list, not 2"
    assert Engine(mha[0], Recurrent(mha[1]), stop_ids={np.int32(502), 0}).stop_ids.tolist() == [0, 502]


def test_what_is_given_for_each_prompt_is_one_for_each_and_named_where_it_is_wrong():
    two, ways, ends = [[1], [2]], [Sampling(), Sampling(1.0)], [Limits(3), Limits(5)]
    made = requests(two, [7, 8], ways, iter(ends), [[5], (6, np.int32(7))])
    assert [request.sampling for request in made] == ways and [request.limits for request in made] == ends
    assert [(request.prompt, request.seed, request.stop_ids) for request in made] == [([1], 7, (5,)), ([2], 8, (6, 7))]
    assert [request.stop_ids for request in requests(two, None, stop_ids={9})] == [(9,), (9,)]
    assert [request.seed for request in requests(two, None)] == [0, 1]
    for name, given, words in [
        ("sampling", ways[:1], "sampling should be 2, one for each prompt, not 1"),
        ("sampling", [Sampling(), 0.7], "sampling[1] should be a Sampling, such as Sampling(temperature=0.7), not 0.7"),
        ("limits", [], "limits should be 2, one for each prompt, not 0"),
        ("limits", [Limits(), 5], "limits[1] should be Limits, such as Limits(new=128), not 5"),
        ("limits", "ab", "limits should be Limits, such as Limits(new=128), not 'ab'"),
        ("stop_ids", [[1]], "stop_ids should be 2, one for each prompt, not 1"),
        ("stop_ids", [[1], 2], "stop_ids[1] should be a list, not 2"),
        ("stop_ids", [[], [503]], "stop_ids[1] should be token ids of the target's vocabulary, from 0 to 502, not 503"),
        ("stop_ids", 2, "stop_ids should be a list, not 2"),
        ("stop_ids", ["a"], "stop_ids should be token ids of the target's vocabulary, from 0 to 502, not 'a'"),
    ]:
        assert refusal(requests, two, None, **{name: given}) == words
    said = refusal(requests, [[1] * 8, [1] * 8], None, limits=[Limits(5), Limits(5, length=8)])
    assert said == "a prompt has 8 tokens; at most 7 fit in a context of 8 with a reply"


def test_commands_offer_the_rules_that_there_are():
    for command in (generate, benchmark):
        hints = typing.get_type_hints(command.Options)
        assert list(typing.get_args(hints["acceptance"])) == list(RULES)
        assert command.Options().acceptance == Sampling().rule == DEFAULT_RULE
    assert {name: rule.name for name, rule in RULES.items()} == {name: name for name in RULES}
    ways = [Sampling(temperature, rule=rule) for temperature in (0.0, 1.0) for rule in RULES]
    assert [way.is_exact for way in ways] == [True, True, True, True, True, True, True, False]
    assert [way.shows_noise for way in ways] == [False, False, False, False, True, False, False, False]
    assert [way.draws for way in ways] == [False, False, False, False, False, False, True, False]
    assert [way.same_text for way in ways] == [True, True, True, True, True, True, False, False]

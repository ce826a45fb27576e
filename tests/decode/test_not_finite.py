"""Targets whose weights are finite and whose logits are not: every command says so, and none makes figures of what is left."""

import dataclasses
import types

import numpy as np
import pytest

from infer import terminal
from infer.benchmark import trials
from infer.evaluate import metrics
from infer.generate import __main__ as generate
from infer.generate import session
from redrafter_jax.decode import reply
from redrafter_jax.decode.engine import Progress, Sampling
from redrafter_jax.errors import BadInput
from tests import fakes
from tests.support import MODELS
from train.demo import own_text
from train.run import evaluation as evaluate

SAID = "2 of 2 replies ended early, for the target's logits were not finite; check the weights of --target, and --dtype"
FAILED = dataclasses.replace(fakes.REPLY, token_ids=[], drafted=[], finish_reason="error", rounds=0)
PROMPTS = metrics.Prompts(np.arange(10), count=2, length=4)


class Fake(fakes.Fake):
    """An engine whose target gives no finite logits."""

    def stream(self, prompts, *_, **__):
        yield Progress([FAILED] * len(prompts), [True] * len(prompts))


def test_a_reply_without_tokens_took_none_from_the_prefill():
    replies = [dataclasses.replace(fakes.REPLY, first_token_seconds=0.05), FAILED]
    totals = terminal.Totals()
    totals.add(replies)
    assert reply.mean_tokens_per_step(replies) == totals.tokens_per_step == 1
    assert totals.prefills == 2 and totals.first_token_seconds == 0.05


def test_the_benchmark_counts_the_rounds_that_the_engine_counts():
    arrays = dict(
        tokens=np.zeros((2, 8)),
        prompt=np.ones(2, int),
        count=np.array([5, 0]),
        rounds=np.array([2, 0]),
        histogram=np.zeros((2, 3), int),
        scored=np.zeros((2, 8), int),
    )
    assert trials._tokens_per_step([trials.Outcome(0.1, 0.2, **arrays)]) == reply.tokens_per_step(5, 1, 2) == 2


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_comparison_without_tokens_says_why_and_divides_by_nothing(more, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session.pair, "fill", lambda plan, tokenizer, *_: session.pair.Pair(Fake(), tokenizer))
    (tmp_path / "prompts.jsonl").write_text('{"token_ids": [1, 2]}\n' * 2)
    models = ["--target", str(MODELS / "target_mha"), "--drafter", str(MODELS / "drafter_mha_rnn")]
    given = ["--prompts", str(tmp_path / "prompts.jsonl"), "--decoding", "compare", "--cache-dir", str(tmp_path / "cache")]
    assert generate.main([*models, *given, *more]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"error: {SAID}"
    assert printed.out.count('"finish_reason": "error"') == printed.out.count("\n") == (2 if more else 0)


@dataclasses.dataclass(frozen=True)
class Program:
    """Decodes three rows, the last of which only pads the batch."""

    state: types.SimpleNamespace
    proposer: object = None

    def decode(self, inputs):
        return self.state, 0.1, 0.2


def test_a_benchmark_times_no_reply_that_failed():
    flags = dict(failed=np.array([True, True, False]), limit=np.array([8, 8, 0]))
    sizes = {name: np.zeros(3, int) for name in ("prompt", "count", "rounds")}
    sizes |= dict(tokens=np.zeros((3, 8), int), scored=np.zeros((3, 8), int), histogram=np.zeros((3, 1), int))
    case = trials.Case(Program(types.SimpleNamespace(**flags, **sizes)), [()], [None])
    with pytest.raises(BadInput) as caught:
        case.decode(0)
    assert str(caught.value) == SAID


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.tokens_per_step(Fake(), PROMPTS, Sampling()),
        lambda: metrics.tokens_per_step_along_text(Fake(), PROMPTS),
        lambda: metrics.greedy_replies(None, PROMPTS),
        lambda: own_text.greedy_rows(None, [[1], [2]], 4),
    ],
    ids=["generated", "along text", "loops", "own text"],
)
def test_figures_are_made_of_whole_replies_alone(call, monkeypatch):
    monkeypatch.setattr(metrics, "Engine", Fake)
    monkeypatch.setattr(own_text, "Engine", Fake)
    with pytest.raises(BadInput) as caught:
        call()
    assert str(caught.value) == SAID.replace("the weights of --target, and --dtype", "the target's weights")


def test_an_evaluation_leaves_out_the_tokens_per_step_that_there_are_not(mha, monkeypatch):
    target, drafter = mha
    monkeypatch.setattr(evaluate, "Engine", Fake)
    evaluation = evaluate.Evaluation(target, None, None)
    evaluation.prompts = [[1, 2], [3, 4]]
    monkeypatch.setattr(evaluation, "_metrics", lambda *_: {"loss": 2.0})
    assert evaluation.measure(drafter) == {"loss": 2.0}

"""Medusa's heads in `infer.tune`: node budgets of their tree are tuned, and `infer.generate` drafts with what was chosen."""

import dataclasses
import json

import pytest

from infer import settings
from infer.generate import __main__ as generate
from infer.generate import session
from infer.tune import __main__ as tune
from infer.tune import acceptance, candidates
from infer.tune.points import Point
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.heads import proposer_of_head
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.files import medusa as files
from redrafter_jax.model import drafter
from tests import support
from tests.support import MODELS

TARGET = str(MODELS / "target_mha")
TREE = ((0,), (1,), (0, 0), (2,), (0, 1), (0, 0, 0))
PROMPTS = [[5, 6, 7, 8] * 5, [1, 5, 9, 77]]


@pytest.fixture(scope="module")
def heads():
    return support.medusa_heads(support.load_target("mha").config, 4, 0.05, tree=TREE)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(50.0)], ids=["greedy", "coupled"])
def test_rounds_are_those_of_the_engine(heads, sampling):
    target, new = support.load_target("mha"), 20
    texts = acceptance.decode(target, PROMPTS, sampling, new, len(PROMPTS))
    whole = candidates.grid({"m": heads.config}, [], [])
    proposer = candidates.largest(heads, whole, 0, target)
    needed = acceptance.search(target, proposer, texts, acceptance.read_hidden(target, texts))
    for budget in (3, 7):
        counted = acceptance.count_rounds(needed, new, 3, budget)
        engine = Engine(target, proposer_of_head(heads, Shape(2, 3, budget)))
        replies = list(engine.generate(PROMPTS, sampling, Limits(new=new), range(len(PROMPTS)), len(PROMPTS)))
        assert counted == [reply.rounds for reply in replies]
    assert sampling.temperature == 0 or sum(counted) < len(PROMPTS) * (new - 1)  # some drafts are accepted


def test_the_parts_of_a_tree_are_tried_and_searches_of_recurrent_heads_beside_them(heads):
    found = candidates.grid({"m": heads.config, "r": drafter.slim(512, 64)}, [(1, 2)], (3, 5, 9))
    assert found == [*(Point("m", 2, 3, budget, 0) for budget in (3, 5, 7)), Point("r", 1, 2, 0, 10)]
    odd = dataclasses.replace(heads.config, tree=((0, 0), (0,), (1,)))  # its first path is no tree
    assert [point.budget for point in candidates.grid({"m": odd}, [], (2, 3))] == [3, 4]


def test_what_is_chosen_is_what_generate_drafts_with(heads, tmp_path, capsys):
    files.save_medusa(heads, tmp_path / "heads")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in PROMPTS))
    pair = ["--target", TARGET, "--drafter", str(tmp_path / "heads")]
    given = ["--prompts", str(tmp_path / "prompts.jsonl"), "--nodes", "4", "--max-new-tokens", "16", "--batch", "2"]
    more = ["--seconds", "0.1", "--output", str(tmp_path / "s.json"), "--cache-dir", str(tmp_path / "programs")]
    assert tune.main([*pair, *given, *more]) == 0
    (entry,) = settings.entries_of(settings.read(tmp_path / "s.json", ""), tmp_path, "")
    assert (entry.choice.width, entry.choice.length, entry.choice.draft_top_k) == (2, 3, 0) and entry.choice.nodes in (4, 7)
    options = generate.Options(
        target=pair[1], drafter=pair[3], settings=str(tmp_path / "s.json"), batch_size=2, decoding="speculative"
    )
    proposer = session.tune(session.prepare(generate.task_of(options)), 0).fill().engine.proposer
    assert proposer.paths == TREE[: entry.choice.nodes - 1]
    assert f"settings of {tmp_path}/s.json: 2x3, {entry.choice.nodes} nodes at most with heads" in capsys.readouterr().err

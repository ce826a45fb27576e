"""Medusa's heads as their user meets them: `--drafter FOLDER` is enough, from the command and from Python."""

import json

import pytest

import infer
from infer.generate import __main__ as generate
from redrafter_jax import Shape
from redrafter_jax.decode.propose.medusa import PUBLISHED
from redrafter_jax.decode.propose.proposer import Round
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.errors import BadInput
from redrafter_jax.files import medusa as files
from tests import support
from tests.jsonl import replies, write_prompts
from tests.support import MODELS

TARGET = str(MODELS / "target_mha")
TREE = ((0,), (1,), (0, 0), (2,), (0, 1), (0, 0, 0))
IDS = [[5, 6, 7, 8] * 5, [1, 5, 9, 77]]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("medusa") / "heads"
    files.save_medusa(support.medusa_heads(support.load_target("mha").config, 4, 0.05, tree=TREE), folder)
    return str(folder)


def test_the_replies_are_those_of_plain_decoding_in_fewer_passes(heads, tmp_path, cache, capsys):
    given = [
        "--target",
        TARGET,
        "--prompts",
        str(write_prompts(tmp_path, IDS)),
        "--json",
        "--max-new-tokens",
        "24",
        "--temperature",
        "50",
        "--cache-dir",
        str(cache),
    ]
    assert generate.main([*given, "--decoding", "autoregressive"]) == 0
    plain = replies(capsys.readouterr().out)
    for more in ([], ["--node-budget", "4"], ["--beam-width", "1", "--beam-length", "2"], ["--with", "lookup"]):
        assert generate.main([*given, "--drafter", heads, *more]) == 0
        found = replies(capsys.readouterr().out)
        assert [reply["token_ids"] for reply in found] == [reply["token_ids"] for reply in plain]
        assert sum(reply["rounds"] for reply in found) < sum(reply["rounds"] for reply in plain)


def test_python_drafts_with_the_folders_own_tree_or_with_a_part_of_it(heads, tmp_path):
    pair = infer.load(TARGET, heads)
    assert pair.engine.proposer.paths == TREE and pair.engine.proposer.round == Round(3, 7)
    assert infer.load(TARGET, heads, Shape(3, 2, 5)).engine.proposer.paths == TREE[:4]
    assert isinstance(infer.load(TARGET, heads, beside="lookup").engine.proposer, Union)
    folder = tmp_path / "published"
    files.save_medusa(support.medusa_heads(support.load_target("mha").config, 4), folder)
    assert set(infer.load(TARGET, str(folder)).engine.proposer.paths) == set(PUBLISHED)


def test_what_does_not_fit_is_one_sentence(heads, tmp_path, capsys):
    for shape, words in ((Shape(1, 5), "needs as many heads"), (Shape(2, 2, tree="beams"), "is a constant")):
        with pytest.raises(BadInput, match=words):
            infer.load(TARGET, heads, shape)
    assert generate.main(["--target", TARGET, "--drafter", heads, "--prompt", "x", "--tree", "beams"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    chain = ["--beam-width", "1", "--beam-length", "9"]
    assert generate.main(["--target", TARGET, "--drafter", heads, "--prompt", "x", *chain]) == 2
    assert "--beam-length should be at most 4" in capsys.readouterr().err
    other = tmp_path / "other"
    files.save_medusa(support.medusa_heads(support.load_target("gqa").config, 2), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(BadInput, match="this target has"):
        infer.load(TARGET, str(other))

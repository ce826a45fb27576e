"""What all commands share: `--version`, the old names, and the one tokenizer loader."""

import subprocess
import sys

import pytest
import transformers

from infer import options, text, text_files
from infer.command import moved
from infer.evaluate import __main__ as evaluate
from infer.fit import __main__ as fit
from infer.generate import __main__ as generate
from infer.pair import EMBEDDED
from redrafter_jax.errors import BadInput
from redrafter_jax.version import __version__
from tests.texts import with_tokenizer
from train import plot


@pytest.mark.parametrize("command", [generate.main, fit.main, evaluate.main, plot.command])
def test_every_command_says_its_version_whatever_else_is_missing(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"redrafter_jax {__version__}\n"


@pytest.mark.parametrize(("old", "new"), [("measure", "infer.evaluate"), ("corpus", "train.demo.corpus")])
def test_an_old_name_says_where_the_command_went(old, new):
    done = subprocess.run([sys.executable, "-m", f"train.{old}", "--any", "thing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and f"python -m {new}" in done.stderr
    assert moved("a", "b") == 2


def test_a_plain_tokenizer_is_what_transformers_finds_for_itself(tmp_path):
    """Ids, text, chat template and special tokens."""
    for folder in (EMBEDDED / "target", with_tokenizer(tmp_path / "target", template=True)):
        ours, theirs = text.load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        assert type(ours) is type(theirs) and ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
        said = "def f(x):\n\treturn 'h\u00e9' <s> </s> <|endoftext|>  x"
        for more in ({}, {"add_special_tokens": False}):
            assert ours(said, **more)["input_ids"] == theirs(said, **more)["input_ids"]
        ids = ours(said)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.chat_template == theirs.chat_template and ours.special_tokens_map == theirs.special_tokens_map
        assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_folder_without_a_tokenizer_has_none_and_is_refused_where_one_is_needed(tmp_path):
    assert text.load_tokenizer(tmp_path) is None
    with pytest.raises(BadInput, match="--target: .* has no tokenizer, which training data needs"):
        text.require_tokenizer(tmp_path, "training data")


def test_beam_shapes_are_read_or_refused():
    assert options.read_beams(["4x4", "1024x64"]) == [(4, 4), (1024, 64)]
    for wrong in ("4", "x", "4x", "0x1", "1x65", "1025x1", "4X4", "-1x2"):
        with pytest.raises(BadInput, match="--beams should be widths and lengths such as 4x4, not"):
            options.read_beam(wrong)


def test_files_that_hold_no_text_are_told_apart(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "good.txt").write_text("x = 1")
    tokenizer, skipped = text.load_tokenizer(EMBEDDED / "target"), []
    found = list(text_files.tokenise(text_files.files([tmp_path]), tokenizer, lambda name, why: skipped.append((name, why))))
    assert [name for name, _ in found] == ["good.txt"] and found[0][1] == [*tokenizer("x = 1")["input_ids"], 0]
    assert [name for name, _ in skipped] == ["bad.txt"] and "UTF-8" in skipped[0][1]

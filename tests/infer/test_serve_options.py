"""Options of `infer.serve`: with those that change the target the text is that of `infer.generate`; wrong ones are refused."""

import contextlib
import importlib.util
import io

import pytest

from infer.generate import __main__ as generate
from infer.serve import __main__ as command
from infer.serve import session
from infer.serve.__main__ import Options
from redrafter_jax.errors import BadInput
from tests.adapters import write
from tests.jsonl import replies
from tests.serving import serving
from tests.texts import with_tokenizer

PROMPT, NEW = "def f(a", 20


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.mark.parametrize("option", ["weights", "lora"])
def test_the_text_is_that_of_generate(option, target, tmp_path, cache):
    value = "int8" if option == "weights" else str(write(tmp_path / "lora", target, alpha=64))
    plain = ["--target", str(target), "--decoding", "autoregressive", "--mesh", "1", "1", "--cache-dir", str(cache)]
    asked = ["--prompt", PROMPT, "--max-new-tokens", str(NEW), "--ignore-eos", "--seed", "3", "--temperature", "1.0", "--json"]
    texts = []
    for more in ([f"--{option}", value], []):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert generate.main([*plain, *asked, *more]) == 0
        texts.append(replies(out.getvalue())[0]["text"])
    options = Options(
        target=str(target), decoding="autoregressive", mesh=(1, 1), model_name="golden", batch_size=1, max_length=64,
        max_prompt_tokens=16, logprobs=0, no_penalties=True, look_ms=5.0, **{option: value},
    )  # fmt: skip
    loaded, _ = session.load(options)
    with serving(loaded, options) as served:
        found = served.client().completions.create(
            model="golden", prompt=PROMPT, max_tokens=NEW, temperature=1.0, seed=3, extra_body={"ignore_eos": True}
        )
    assert found.choices[0].text == texts[0]
    assert loaded.engine.target.config.weight_format == "int8" if option == "weights" else texts[0] != texts[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "--port should be from 0 to 65535, not 99999"),
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs should be a JSON object such as"),
        (["--chat-template-kwargs", '{"messages": 1}'], "--chat-template-kwargs should hold variables of the chat template"),
        (["--lora", "nowhere"], "--lora"),
        (["--prompt-logprobs", "--logprobs", "0"], "--prompt-logprobs reports as many as --logprobs says"),
        (["--process-id", "1"], "--process-id goes with --coordinator and --num-processes"),
        (["--batch-size", "0"], "--batch-size should be from 1"),
        (["--look-ms", "0"], "--look-ms should be from 1.0"),
        (["--max-queue", "-1"], "--max-queue should be from 0"),
        (["--max-prompt-tokens", "0"], "--max-prompt-tokens should be from 1"),
        (["--chunk-tokens", "8"], "--chunk-tokens should be from 16 to 8192, not 8"),
        (["--chunk-tokens", "40"], "--chunk-tokens should be a multiple of 16, not 40"),
        (["--target", "x"], "--drafter is missing"),
        (["--drafter", "lookup", "--beam-width", "2"], "--beam-width is for the search of a head"),
        (["--settings", "x", "--beam-width", "2"], "--settings chooses how a head drafts"),
        (["--api-key-file", "/nowhere/keys"], "--api-key-file: /nowhere/keys cannot be read"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid --port 8000 cannot be listened on"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, said, capsys):
    more = ["--cache-dir", "/tmp/none-such-cache"] if "--host" in arguments else ["--port", "0"] if "--lora" in arguments else []
    assert command.main([*arguments, *more]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ") and said in err


def test_a_number_format_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--weights", "int3"])
    assert end.value.code == 2 and "invalid choice 'int3' for argument '--weights'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [["fastapi"], ["uvicorn", "openai"]])
def test_missing_packages_are_one_sentence_that_says_what_to_install(missing, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    assert command.main([]) == 2
    err = capsys.readouterr().err
    assert (
        err == f"error: infer.serve needs {' and '.join(missing)}; pip install -r requirements-serve.txt, or redrafter-jax[serve]\n"
    )


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    checks = command.checks
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert checks.read_keys(tmp_path / "keys") == [b"one", b"two"] and checks.read_keys(None) == []
    monkeypatch.setenv("REDRAFTER_API_KEY", "three")
    assert checks.read_keys(None) == [b"three"]
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(BadInput, match="has no key"):
        checks.read_keys(tmp_path / "keys")

"""`infer.serve` with options that change the target serves the text of `infer.generate` with the same options."""

import pytest

from infer.generate import __main__ as generate
from infer.serve import session
from infer.serve.__main__ import Options
from tests.infer.test_adapters import write
from tests.jsonl import replies
from tests.serving import serving
from tests.texts import with_tokenizer

PROMPT, NEW = "def f(a", 20


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.mark.parametrize("option", ["weights", "lora"])
def test_the_text_is_that_of_generate(option, target, tmp_path, cache, capsys):
    value = "int8" if option == "weights" else str(write(tmp_path / "lora", target, alpha=64))
    plain = ["--target", str(target), "--decoding", "autoregressive", "--mesh", "1", "1", "--cache-dir", str(cache)]
    asked = ["--prompt", PROMPT, "--max-new-tokens", str(NEW), "--ignore-eos", "--seed", "3", "--temperature", "1.0", "--json"]
    texts = []
    for more in ([f"--{option}", value], []):
        assert generate.main([*plain, *asked, *more]) == 0
        texts.append(replies(capsys.readouterr().out)[0]["text"])
    options = Options(
        target=str(target), decoding="autoregressive", mesh=(1, 1), model_name="golden", batch_size=1, max_length=64,
        max_prompt_tokens=16, logprobs=0, no_penalties=True, look_ms=5.0, **{option: value},
    )  # fmt: skip
    loaded, _ = session.load(options)
    with serving(loaded, options) as served:
        found = served.client().completions.create(
            model="golden", prompt=PROMPT, max_tokens=NEW, temperature=1.0, seed=3, extra_body={"ignore_eos": True}
        )
    assert found.choices[0].text == texts[0] != texts[1]

"""`infer.load`, defaults by device, stop ids, and conversations."""

import builtins
import json

import pytest

import infer
import redrafter_jax
from infer import pair
from infer.benchmark import __main__ as benchmark
from infer.generate import __main__ as generate
from infer.generate import chat
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config
from redrafter_jax.model.shapes import SHAPES
from tests.options import PAIR, SHORT
from tests.support import MODELS
from tests.texts import with_tokenizer


def test_python_gets_the_same_text_in_five_lines(tmp_path):
    loaded = infer.load(str(with_tokenizer(tmp_path / "target")), str(MODELS / "drafter_mha_rnn"))
    one = loaded.complete("def fib(n):", max_new_tokens=16)
    other = infer.load(str(tmp_path / "target")).complete("def fib(n):", max_new_tokens=16)
    assert one.text == other.text and one.reply.token_ids == other.reply.token_ids
    assert sum(one.reply.accepted_histogram[1:]) > 0 and other.reply.accepted_histogram[1:] == []
    over_rows = infer.load(str(tmp_path / "target"), mesh=(2, 1)).complete("def fib(n):", max_new_tokens=16)
    assert over_rows.reply.token_ids == one.reply.token_ids  # a single row on a mesh that splits rows


def test_what_the_library_says_it_offers_is_there():
    assert all(callable(getattr(redrafter_jax, name)) for name in redrafter_jax.__all__)


def test_text_without_a_tokenizer_is_refused_from_python_too():
    loaded = infer.load(str(MODELS / "target_mha"))
    assert loaded.complete([1, 2, 3], max_new_tokens=4).text is None
    with pytest.raises(BadInput, match="no tokenizer"):
        loaded.complete("a")


def test_defaults_depend_on_the_device():
    shape = {name: pair.default_shape(name, SHAPES["llama-7b"], "float32") for name in ("cpu", "gpu", "tpu")}
    assert shape["cpu"] == pair.CPU_SHAPE != shape["gpu"] == shape["tpu"] == pair.ACCELERATOR_SHAPE
    assert (pair.default_head("cpu"), pair.default_head("gpu")) == ("drafter_slim", "drafter_best")


def test_on_a_cpu_the_default_depends_on_whether_its_cache_has_room_for_the_target(monkeypatch):
    monkeypatch.setattr(pair, "cache_size", lambda: 32 << 20)
    for target, dtype, expected in [
        ("demo", "float32", pair.CACHED_SHAPE),  # 29.2 MB that a step reads
        ("smollm-135m", "bfloat16", pair.CPU_SHAPE),
    ]:
        assert pair.default_shape("cpu", SHAPES[target], dtype) == expected
    monkeypatch.setattr(pair, "cache_size", lambda: 16 << 20)
    assert pair.default_shape("cpu", SHAPES["demo"], "float32") == pair.CPU_SHAPE
    assert pair.default_shape("cpu", SHAPES["demo"], "bfloat16") == pair.CACHED_SHAPE


def test_the_size_of_the_cache_is_what_linux_says_or_a_usual_one(tmp_path):
    for index, size in enumerate(["48K", "1024K", "32768K", "no size"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert pair.cache_size(str(tmp_path)) == 32 << 20
    assert pair.cache_size(str(tmp_path / "nowhere")) == pair.DEFAULT_CPU_CACHE_BYTES


def test_the_options_offer_what_the_library_knows():
    assert generate.Options().draft_top_k == benchmark.Options().draft_top_k == Shape().draft_top_k
    assert set(benchmark.Shapes.__args__) == set(SHAPES)


@pytest.mark.parametrize(
    ("model", "generation", "expected"),
    [({}, {}, [9]), ({"eos_token_id": 2}, {}, [2]), ({"eos_token_id": 2}, {"eos_token_id": [3, 4]}, [3, 4])],
)
def test_the_generation_config_decides_what_ends_a_text(tmp_path, model, generation, expected):
    (tmp_path / "config.json").write_text(json.dumps(model))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))

    class Tokenizer:
        eos_token_id = 9

    assert config.stop_ids(tmp_path, Tokenizer(), "--target") == expected


def turns(monkeypatch, *said):
    left = iter(said)

    def ask(_):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", ask)


class Tokenizer:
    chat_template = None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ["a", "a-A\nb", "c"]),
        ("x", [["a"], ["a", "-A", "b"], ["c"]]),
    ],
)
def test_a_conversation_remembers_until_it_is_reset(monkeypatch, template, expected):
    tokenizer = Tokenizer()
    tokenizer.chat_template = template
    turns(monkeypatch, "a", "", "refused", "b", "/reset", "c", "/quit", "never")
    heard = []

    def answer(prompt, turn):
        content = prompt.content if isinstance(prompt.content, str) else [m["content"] for m in prompt.content]
        if "refused" in str(content):
            raise BadInput("too long")
        heard.append(content)
        return "-A"

    chat.converse(bool(tokenizer.chat_template), answer)
    assert heard == expected


def test_a_command_of_the_chat_is_not_said_to_the_model_and_a_path_is(monkeypatch, capsys):
    turns(monkeypatch, "/help", "/hlep", "/usr/bin", "/exit", "never")
    heard = []
    chat.converse(True, lambda prompt, turn: heard.append(prompt.content[-1]["content"]) or "A")
    err = capsys.readouterr().err
    assert heard == ["/usr/bin"] and chat.HELP in err and "there is no /hlep; /help lists what there is" in err


def test_interactive_streams_replies_until_the_input_ends(monkeypatch, tmp_path, capsys):
    turns(monkeypatch, "hi", "x" * 600)
    target = with_tokenizer(tmp_path / "target", template=True)
    code = generate.main(["--target", str(target), *PAIR[2:], *SHORT, "--interactive", "--cache-dir", str(tmp_path / "programs")])
    out, err = capsys.readouterr()
    assert code == 0 and out.strip()
    assert err.startswith("Chat. /help lists") and "passes of " in err
    assert "this turn has" in err and "/reset starts over" in err

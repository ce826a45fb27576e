"""A chat template is a program of the model's: it writes what transformers has it write, but not without end."""

import signal
import threading
import time

import pytest

from infer import prompts, templates
from redrafter_jax.errors import BadInput
from tests.texts import TEMPLATE, THINKING, with_tokenizer
from train.data import examples

SAID = (("user", "a ß"), ("assistant", "b"), ("user", "c"))
MESSAGES = [{"role": role, "content": content} for role, content in SAID]
LLAMA3 = (
    "{{- bos_token }}{%- set name = namespace(found=false) %}{%- for m in messages %}"
    "{%- if loop.first %}{{ '!' * 3 }}{%- endif %}"
    "{{- '<|start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|end|>' }}"
    "{%- if m.tool is defined %}{{ m.tool | tojson }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant\n\n' }}{%- endif %}{{ tools is none }}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from infer.text import load_tokenizer

    return load_tokenizer(with_tokenizer(tmp_path_factory.mktemp("tokenizer") / "target", template=True))


@pytest.mark.parametrize("template", [TEMPLATE, templates.VICUNA, LLAMA3], ids=["short", "Vicuna's", "Llama 3's kind"])
def test_a_template_writes_what_transformers_has_it_write(tokenizer, template):
    messages = [*MESSAGES, {"role": "tool", "content": "d", "tool": {"a": [1, "é"]}, "name": None}]
    for asks in (True, False):
        how = {"chat_template": template, "tokenize": False, "add_generation_prompt": asks}
        assert templates.render(tokenizer, messages, asks, template) == tokenizer.apply_chat_template(messages, **how)
    assert templates.render(tokenizer, MESSAGES, True).startswith("<user>a ß<assistant>")


@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, {"enable_thinking": True}, {}], ids=str)
def test_variables_of_a_template_are_those_of_transformers(tokenizer, kwargs):
    how = {"chat_template": THINKING, "tokenize": False, "add_generation_prompt": True}
    written = templates.render(tokenizer, MESSAGES, True, THINKING, kwargs)
    assert written == tokenizer.apply_chat_template(MESSAGES, **how, **kwargs)
    assert written.endswith("</think>\n\n") == (kwargs == {"enable_thinking": False})
    prompt = prompts.Prompt("a prompt", "messages", MESSAGES)
    assert prompts.encode(prompt, tokenizer, 503, 512, THINKING, kwargs) == tokenizer(written)["input_ids"]


@pytest.mark.parametrize("text", ["", "enable_thinking", "{enable_thinking: false}", '["a"]', "1", "null", '{"a": 1', "[" * 99999])
def test_variables_that_are_no_json_object_are_refused(text):
    with pytest.raises(BadInput, match=r"^--option should be a JSON object such as .*, not ") as caught:
        templates.read_kwargs(text, "--option")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_variable_that_the_template_does_not_read_or_that_is_the_conversation_is_refused(tokenizer):
    with pytest.raises(BadInput, match="^--chat-template-kwargs: the chat template reads no variable 'enable_thinkng'"):
        templates.render(tokenizer, MESSAGES, True, THINKING, {"enable_thinking": False, "enable_thinkng": False})
    with pytest.raises(BadInput, match="and messages is not one of them"):
        templates.read_kwargs('{"messages": []}')
    assert templates.read_kwargs('{"enable_thinking": false, "a": [1]}') == {"enable_thinking": False, "a": [1]}
    assert templates.read_kwargs(None) == {}


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (LOOP.replace("BODY", "text"), "writes more than 100000 characters"),
        ("{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than 100000 characters"),
        ("{{ 'x' * 10000000000000 }}", "writes more than 100000 characters"),
        ("{{ 10000000000000 * [0] }}", "writes more than 100000 characters"),
        ("{% macro m() %}" + LOOP + "{% endmacro %}{{ m() }}", "runs for more than 0.2 seconds"),
        (LOOP.replace("BODY", ""), "runs for more than 0.2 seconds"),
    ],
)
def test_a_template_without_end_is_ended(tokenizer, monkeypatch, template, sentence):
    monkeypatch.setattr(templates, "MAX_CHARACTERS", 100_000)
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    for write in (
        lambda: prompts.encode(prompts.Prompt("--prompts x:1", "messages", MESSAGES), tokenizer, 503, 512),
        lambda: examples.write_out(MESSAGES, tokenizer),
    ):
        with pytest.raises(BadInput, match=f"^--target: its chat template {sentence}$"):
            write()
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_in_another_thread_a_template_is_bounded_in_what_it_writes(tokenizer, monkeypatch):
    monkeypatch.setattr(templates, "MAX_CHARACTERS", 1000)
    said = []

    def write(template):
        try:
            said.append(templates.render(tokenizer, MESSAGES[:1], False, template))
        except BadInput as error:
            said.append(str(error))

    for template in (TEMPLATE.removesuffix("<assistant>"), LOOP.replace("BODY", "text")):
        thread = threading.Thread(target=write, args=(template,))
        thread.start()
        thread.join()
    assert said == ["<user>a ß", "--target: its chat template writes more than 1000 characters"]


@pytest.mark.parametrize("template", ["{{ raise_exception('a\nb') }}", "{% if %}", "{{ messages[9].content }}"])
def test_what_a_template_refuses_is_one_line(tokenizer, template):
    with pytest.raises(templates.Refused) as caught:
        templates.render(tokenizer, MESSAGES, True, template)
    assert "\n" not in str(caught.value)

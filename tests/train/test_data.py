"""From files to packed batches: formats, labels found from the template, malformed records, datasets on disk, packing."""

import json
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from infer import pair, text_files
from infer.text import require_tokenizer
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.loss import IGNORED_LABEL
from tests import texts
from train.data import datasets, examples
from train.data import rows as data

TARGET = str(pair.embedded("target"))
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TURNS = [("user", "What is a list?"), ("assistant", "A sequence."), ("user", "And a set?"), ("assistant", "No order.")]


@pytest.fixture
def tokenizer():
    return require_tokenizer(pathlib.Path(TARGET), "a test")


def record(kind: str) -> dict:
    if kind == "sharegpt":
        names = {"user": "human", "assistant": "gpt"}
        return {"id": "x", "conversations": [{"from": names[role], "value": text} for role, text in TURNS]}
    if kind == "messages":
        return {"messages": [{"role": role, "content": text} for role, text in TURNS]}
    return {"instruction": "What is a list?", "input": "", "output": "A sequence."}


def write(path: pathlib.Path, records: list, as_array: bool = False) -> pathlib.Path:
    path.write_text(json.dumps(records) if as_array else "".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("kind", ["sharegpt", "messages", "alpaca"])
def test_the_assistants_words_and_nothing_else_are_labels(kind, as_array, template, tokenizer, tmp_path):
    tokenizer.chat_template = template
    file = write(tmp_path / "talk.json", [record(kind)], as_array)
    (example,) = examples.conversations([file], tokenizer, examples.Skips(0.0))
    labelled = tokenizer.decode(example.tokens[example.labelled])
    end = "\n<|end|>\n" if template else tokenizer.eos_token
    said = [text for role, text in TURNS if role == "assistant"][: 1 if kind == "alpaca" else 2]
    lead = "" if template else " "
    assert labelled == "".join(f"{lead}{text}{end}" for text in said)
    assert "What is a list?" in tokenizer.decode(example.tokens)


@pytest.mark.parametrize(
    "broken, reason",
    [
        ("{not json", "not a JSON object"), ('{"other": 1}', "has neither"), ('{"messages": 3}', "not a list"),
        ('{"messages": [{"role": "judge", "content": "x"}]}', "`role` is not one of"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "the assistant says nothing"),
        ('{"instruction": "x"}', "`output` is not a text"),
        ('{"messages": [{"role": ["x"], "content": "x"}]}', "`role` is not one of"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "nothing is asked"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "no character"),
    ],
)  # fmt: skip
def test_malformed_records_are_counted_and_named_with_their_line(broken, reason, tokenizer, tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps(record("messages")) + "\n" + broken + "\n")
    skips = examples.Skips(0.5)
    assert len(list(examples.conversations([file], tokenizer, skips))) == 1
    assert (skips.read, skips.skipped) == (2, 1) and "talk.jsonl, line 2" in skips.reasons[0] and reason in skips.reasons[0]
    with pytest.raises(BadInput, match="1 of 2 records are malformed.*line 2"):
        list(examples.conversations([file], tokenizer, examples.Skips(0.4)))


@pytest.mark.parametrize("between", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_only_line_breaks_end_a_record_and_a_byte_order_mark_does_no_harm(between, tokenizer, tmp_path):
    file, talk = tmp_path / "talk.jsonl", record("messages")
    talk["messages"][1]["content"] = f"A{between}B"
    text = json.dumps(talk, ensure_ascii=False)
    file.write_text(f"{text}\r\n{text}\n", encoding="utf-8-sig")
    skips = examples.Skips(0.0)
    found = list(examples.conversations([file], tokenizer, skips))
    assert (skips.read, skips.skipped) == (2, 0)
    assert all(f"A{between}B" in tokenizer.decode(example.tokens) for example in found)


@pytest.mark.parametrize("opening", [["assistant"], ["assistant", "assistant"], ["system", "assistant"]])
def test_what_the_assistant_says_before_the_first_question_is_left_out(opening):
    turns = [*((role, "Cut off.") for role in opening), *TURNS]
    kept = examples.messages({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert [(m["role"], m["content"]) for m in kept] == [("system", "Cut off.")] * ("system" in opening) + TURNS


def test_empty_files_in_a_folder_are_passed_over_and_those_named_are_malformed(tokenizer, tmp_path):
    for name, content in (("__init__.py", ""), ("blank.py", " \n\n"), ("one.py", "x = 1\n")):
        (tmp_path / name).write_text(content)
    skips = examples.Skips(0.0)
    assert [e.where for e in examples.text(text_files.files([tmp_path]), tokenizer, skips)] == ["one.py"] and skips.read == 1
    with pytest.raises(BadInput, match="__init__.py: is empty"):
        list(examples.text(text_files.files([tmp_path / "__init__.py"]), tokenizer, examples.Skips(0.0)))
    (tmp_path / "one.py").unlink()
    with pytest.raises(BadInput, match="neither empty nor hidden"):
        text_files.files([tmp_path])


def test_a_text_begins_as_the_tokenizer_begins_prompts(tokenizer, tmp_path):
    (tmp_path / "one.txt").write_text("x = 1")
    (plain,) = examples.text([tmp_path / "one.txt"], tokenizer, examples.Skips(0.0))
    assert plain.tokens.tolist() == tokenizer("x = 1")["input_ids"] + [tokenizer.eos_token_id]  # the embedded pair's: as it is
    inner = texts.byte_tokenizer(503)
    inner.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 256)])
    llama = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<end>", eos_token="w300")
    (opened,) = examples.text([tmp_path / "one.txt"], llama, examples.Skips(0.0))
    assert opened.tokens.tolist() == llama("x = 1")["input_ids"] + [300] and opened.tokens[0] == 256
    assert opened.labelled.shape == opened.tokens.shape


def test_ids_are_compared_with_the_targets_vocabulary_not_the_tokenizers(tmp_path):
    config = json.loads((pathlib.Path(TARGET) / "config.json").read_text())
    folder = texts.save_tokenizer(tmp_path, 503)
    (tmp_path / "one.txt").write_text("x = 1")
    talk = write(tmp_path / "talk.jsonl", [record("messages")])
    ids = write(tmp_path / "ids.jsonl", [{"token_ids": [1, 2, 503]}])
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    for kind, file in (("text", tmp_path / "one.txt"), ("conversations", talk)):
        with pytest.raises(BadInput, match=r"--target: the tokenizer writes token id \d+ .*vocab_size in config.json is 20"):
            datasets.build(datasets.Source(kind, (file,), str(folder)), tmp_path / "sets")
    with pytest.raises(BadInput, match="should be from 0 to 19, the target's vocabulary, not 503"):
        datasets.build(datasets.Source("token_ids", (ids,), str(folder)), tmp_path / "sets")
    assert not list((tmp_path / "sets").rglob("dataset_info.json"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 504}))
    built = datasets.build(datasets.Source("token_ids", (ids,), str(folder), held_out=0.0), tmp_path / "sets")
    assert datasets.open_split(built, "train")[0]["tokens"].tolist() == [1, 2, 503]


def test_a_template_that_rewrites_earlier_turns_is_not_guessed_at(tokenizer, tmp_path):
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    skips = examples.Skips(1.0)
    with pytest.raises(BadInput, match="does not write a reply behind its question"):
        list(examples.conversations([write(tmp_path / "t.jsonl", [record("messages")])], tokenizer, skips))


@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, {}], ids=str)
def test_a_template_that_leaves_out_what_was_thought_earlier_gives_an_example_for_each_reply(kwargs, tokenizer, tmp_path):
    tokenizer.chat_template = texts.THINKING
    file = write(tmp_path / "t.jsonl", [record("messages"), record("alpaca")])
    found = list(examples.conversations([file], tokenizer, examples.Skips(0.0), kwargs))
    thought = "<think>\n\n</think>\n\n"
    labelled = ["A sequence.<end>", "No order.<end>", "A sequence.<end>"]
    labelled = labelled if kwargs else [thought + text for text in labelled]
    assert [tokenizer.decode(each.tokens[each.labelled]) for each in found] == labelled
    assert [tokenizer.decode(each.tokens).count(thought) for each in found] == [1, 1, 1]
    for number, each in enumerate(found[:2], 1):  # what is read before the reply is what the target is asked with
        turns = [{"role": role, "content": text} for role, text in TURNS[: 2 * number - 1]]
        asked = examples.template_writes(turns, tokenizer, True, kwargs)
        assert tokenizer.decode(each.tokens[: each.labelled.argmax()]) == asked


def test_a_dataset_of_other_variables_of_the_template_is_another(tmp_path):
    file = write(tmp_path / "t.jsonl", [record("messages")])
    names = [
        datasets.Source("conversations", (file,), TARGET, template_kwargs=kwargs).fingerprint()
        for kwargs in (None, {}, {"enable_thinking": False}, {"enable_thinking": True})
    ]
    assert names[0] == names[1] and len(set(names)) == 3


@pytest.mark.parametrize(
    "name, content, says",
    [("empty.json", "", "is empty"), ("broken.json", '[{"messages": ', "not valid JSON"), ("latin.json", b"\xff\xfe\xff", "UTF-8")],
)
def test_a_file_that_is_empty_or_unreadable_is_one_clear_sentence(name, content, says, tokenizer, tmp_path):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=f"{name}.*{says}"):
        datasets.build(datasets.Source("conversations", (file,), TARGET), tmp_path / "sets")
    assert not list((tmp_path / "sets").rglob("dataset_info.json"))


def test_a_dataset_is_built_once_split_by_content_and_read_by_tfds_alone(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(f"x = {number}\n" * (1 + number % 5))
    source = datasets.Source("text", (folder,), TARGET, held_out=0.25)
    built = datasets.build(source, tmp_path / "sets")
    stamp = (built / "dataset_info.json").stat().st_mtime_ns
    assert datasets.build(source, tmp_path / "sets") == built and (built / "dataset_info.json").stat().st_mtime_ns == stamp
    train, held_out = (datasets.open_split(built, split) for split in ("train", "validation"))
    assert len(train) + len(held_out) == 40 and 2 <= len(held_out) <= 20
    assert all(datasets.is_held_out(example["tokens"], 0.25) for example in (held_out[i] for i in range(len(held_out))))
    elsewhere = tfds.builder_from_directory(built).as_data_source(split="train")[0]
    np.testing.assert_array_equal(elsewhere["tokens"], train[0]["tokens"])
    (folder / "00.txt").write_text("changed = True\n")
    assert datasets.build(source, tmp_path / "sets") != built
    both = datasets.join([built, built], "train")
    np.testing.assert_array_equal(both[len(train) + 1]["tokens"], train[1]["tokens"])
    assert "tensorflow" not in sys.modules


def test_a_build_that_was_killed_leaves_nothing_that_looks_complete(tmp_path):
    file = write(tmp_path / "many.jsonl", [record("messages")] * 6000)
    code = (
        "import pathlib; from train.data import datasets;"
        f"datasets.build(datasets.Source('conversations', (pathlib.Path({str(file)!r}),), {TARGET!r}),"
        f" pathlib.Path({str(tmp_path / 'sets')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "sets").rglob("*incomplete*")) and process.poll() is None:
            assert time.monotonic() < deadline, "the build never started"
            time.sleep(0.05)
        assert process.poll() is None, process.stderr.read().decode()  # it was killed in the middle, and did not end by itself
    finally:
        process.kill()
        process.communicate()
    assert not list((tmp_path / "sets").rglob("dataset_info.json"))
    built = datasets.build(datasets.Source("conversations", (file,), TARGET), tmp_path / "sets")
    assert len(datasets.join([built], "train") or datasets.join([built], "validation")) == 6000


def test_what_stops_a_build_is_raised_as_it_is_unless_another_process_was_sooner(tmp_path, monkeypatch):
    file = write(tmp_path / "talk.jsonl", [record("messages")] * 4)
    source = datasets.Source("conversations", (file,), TARGET)
    prepare = datasets.ConversationsBuilder.download_and_prepare

    def full(builder):
        raise OSError("no space left")

    def later(builder):
        prepare(datasets._builder(source, tmp_path / "sets"))
        raise OSError("Directory not empty")

    monkeypatch.setattr(datasets.ConversationsBuilder, "download_and_prepare", full)
    with pytest.raises(OSError, match="no space left") as raised:
        datasets.build(source, tmp_path / "sets")
    assert raised.value.__cause__ is None  # what looks for causes would turn in a circle
    monkeypatch.setattr(datasets.ConversationsBuilder, "download_and_prepare", later)
    built = datasets.build(source, tmp_path / "sets")
    assert len(datasets.join([built], "train") or datasets.join([built], "validation")) == 4


def test_token_ids_carry_their_prompts_length_and_bad_ones_are_named(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"token_ids": [1, 2, 3, 4], "prompt_tokens": 2}\n{"token_ids": [1, 99999]}\n{"token_ids": [1], "prompt_tokens": 1}\n'
    )
    skips = examples.Skips(0.9)
    (example,) = examples.token_ids([file], 2048, skips)
    assert example.tokens.tolist() == [1, 2, 3, 4] and example.labelled.tolist() == [False, False, True, True]
    assert skips.skipped == 2 and "line 2" in skips.reasons[0] and "line 3" in skips.reasons[1]


def example(length: int, labelled: bool = True, start: int = 1) -> dict:
    return {
        "tokens": np.arange(start, start + length, dtype=np.int32),
        "labelled": np.full(length, labelled),
        "where": f"of {length}",
    }


def test_packing_fills_rows_and_keeps_examples_apart():
    rows = data.Rows([example(5), example(3), example(20, start=100), example(8), example(2, labelled=False)], 10)
    assert rows.fill == pytest.approx((5 + 3 + 20 + 8) / 40) and len(rows) == 4
    whole = [rows[i] for i in range(len(rows))]
    for row in whole:
        changes = np.flatnonzero(np.diff(row["segments"])) + 1
        for part in np.split(np.arange(10), changes):
            segment, positions = row["segments"][part], row["positions"][part]
            assert len(set(segment)) == 1
            np.testing.assert_array_equal(positions, np.arange(len(part)) if segment[0] else 0)
        np.testing.assert_array_equal(row["labels"][row["segments"] == 0], IGNORED_LABEL)
    kept = np.concatenate([row["tokens"][row["segments"] > 0] for row in whole])
    assert sorted(kept.tolist()) == sorted([*range(1, 6), *range(1, 4), *range(100, 120), *range(1, 9)])
    assert {place for i in range(len(rows)) for place in rows.where(i)} == {"of 5", "of 3", "of 20", "of 8"}


def test_packing_wastes_little():
    rng = np.random.default_rng(0)
    rows = data.Rows([example(int(n)) for n in rng.integers(20, 400, 300)], 512)
    assert rows.fill > 0.97


def test_nothing_labelled_is_said_and_not_trained_on():
    with pytest.raises(BadInput, match="the training data: there is no token to predict, for none of the 1 examples has a label"):
        data.Rows([example(4, labelled=False)], 8)
    with pytest.raises(BadInput, match="--held-out: there is no token"):
        data.Rows([example(4, labelled=False)], 8, "--held-out")


def test_what_a_step_reads_depends_on_seed_step_and_batch_alone():
    rows = data.Rows([example(8, start=10 * n) for n in range(50)], 8)
    read = lambda seed, first, last: [numbers.tolist() for _, numbers in data.read_batches(rows, 4, seed, first, last)]  # noqa: E731
    whole = read(1, 0, 40)
    assert whole[30:] == read(1, 30, 40) and whole[0] != read(2, 0, 1)[0]
    first_epoch = sum(whole, [])[:50]
    assert sorted(first_epoch) == list(range(50)) and first_epoch != sum(whole, [])[50:100]


def test_processes_read_parts_of_the_same_batches_in_the_same_order(monkeypatch):
    rows = data.Rows([example(8, start=10 * n) for n in range(50)], 8)
    read = lambda: [numbers.tolist() for _, numbers in data.read_batches(rows, 4, 1, 3, 10)]  # noqa: E731
    whole, parts = read(), []
    monkeypatch.setattr(data, "put_batch", lambda host, batch: host)
    for mine in ([0, 1], [2, 3]):
        monkeypatch.setattr(data, "find_local_rows", lambda batch, mine=mine: np.array(mine))
        parts.append(read())
    assert [one + other for one, other in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)], ids=str)
def test_every_mesh_reads_the_same_rows_into_the_same_places(mesh):
    rows, found = data.Rows([example(8, start=10 * n) for n in range(50)], 8), []
    for shape in ((1, 1), mesh):
        jax.set_mesh(make_mesh(*shape))
        found.append([np.asarray(batch.tokens) for batch, _ in data.read_batches(rows, 8, 1, 2, 6)])
    np.testing.assert_array_equal(*found)


def test_what_two_processes_hold_of_a_batch_is_the_whole_batch_once(monkeypatch):
    """Devices 0 to 3 stand for one process's, 4 to 7 for the other's."""
    whole = jax.sharding.NamedSharding.addressable_devices_indices_map

    def held(process: int) -> list[int]:
        own = lambda self, shape: {device: part for device, part in whole(self, shape).items() if device.id // 4 == process}  # noqa: E731
        monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", own)
        return data.find_local_rows(8).tolist()

    jax.set_mesh(make_mesh(4, 2))
    assert [held(0), held(1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    jax.set_mesh(make_mesh(1, 8))  # rows are not split, so every process reads them all
    assert held(0) == held(1) == list(range(8))

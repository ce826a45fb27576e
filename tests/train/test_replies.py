"""Files of replies: gone on with by the run that began them alone; a reply that ends in an error is no success."""

import json
import shutil

import pytest

from infer import text_files
from infer.generate import __main__ as generate
from infer.generate import batches, hashes, parts, session
from infer.replies import Owner, ReplyFile
from redrafter_jax.errors import BadInput
from tests.damaged import flip
from tests.fakes import Fake
from tests.options import asked_for
from tests.texts import THINKING, with_tokenizer
from train import main
from train.distill import __main__ as distill
from train.distill import plan

SHORT = ["--max-new-tokens", "3", "--decoding", "autoregressive"]


@pytest.fixture
def model(tmp_path):
    return with_tokenizer(tmp_path / "model", template=True)


@pytest.fixture
def command(model, tmp_path, monkeypatch, capsys):
    """Runs `infer.generate` on prompts of ids, with the fake engine; returns exit code and standard error."""

    def start(*arguments, ids=((1, 2), (3, 4))):
        monkeypatch.setattr(session.pair, "fill", lambda resolved, tokenizer, *_: session.pair.Pair(Fake(), tokenizer))
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"token_ids": prompt}) + "\n" for prompt in ids))
        files = ["--target", model, "--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "out.jsonl"]
        code = generate.main([*map(str, [*files, *SHORT, "--cache-dir", tmp_path / "cache", *arguments])])
        return code, capsys.readouterr().err

    return start


def changed_weights(model):
    flip(model / "model.safetensors", 0.5)


def changed_stops(model):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))


def changed_tokenizer(model):
    fields = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(fields | {"model_max_length": 12}))


@pytest.mark.parametrize("change", [changed_weights, changed_stops, changed_tokenizer])
def test_an_output_is_not_gone_on_with_once_a_file_of_the_target_has_changed(command, model, tmp_path, change):
    assert command()[0] == 0 and command()[0] == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    change(model)
    code, told = command()
    assert code == 2 and "out.jsonl:1 belongs to another run" in told
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_in_bfloat16_another_batch_is_another_run(command, tmp_path):
    assert command("--batch-size", 1)[0] == 0 and command("--batch-size", 2)[0] == 0
    (tmp_path / "out.jsonl").unlink()
    narrow = ("--dtype", "bfloat16", "--batch-size")
    assert command(*narrow, 1)[0] == 0 and command(*narrow, 1)[0] == 0
    code, told = command(*narrow, 2)
    assert code == 2 and "in bfloat16 also another --batch-size or --mesh" in told


def test_other_variables_of_the_chat_template_are_another_run(command, distilling, tmp_path, model):
    (model / "chat_template.jinja").write_text(THINKING)
    off, on = '{"enable_thinking": false}', '{"enable_thinking": true}'
    assert command()[0] == 0 and command("--chat-template-kwargs", "{}")[0] == 0
    assert "belongs to another run" in command("--chat-template-kwargs", off)[1]
    assert distilling()[0] == 0 and distilling("--chat-template-kwargs", "{}")[0] == 0
    code, told = distilling("--chat-template-kwargs", off)
    assert code == 2 and 'chat_template_kwargs was null and is {"enable_thinking": false}' in told
    lengths = {}
    for name, given in (("off", off), ("on", on)):
        file = tmp_path / f"{name}.jsonl"
        assert distilling("--chat-template-kwargs", given, output=file)[0] == 0
        lengths[name] = [json.loads(line)["prompt_tokens"] for line in file.read_text().splitlines()]
    thought = len("<think>\n\n</think>\n\n")  # a token is a byte
    assert lengths["off"] == [length + thought for length in lengths["on"]]
    for start in (command, distilling):
        code, told = start("--chat-template-kwargs", "no")
        assert code == 2 and "--chat-template-kwargs should be a JSON object" in told


def test_files_are_not_hashed_where_no_line_is_written(monkeypatch, model, capsys):
    monkeypatch.setattr(session.pair, "fill", lambda resolved, tokenizer, *_: session.pair.Pair(Fake(), tokenizer))
    monkeypatch.setattr(hashes.fingerprint, "fingerprint", lambda _: pytest.fail("the weights were read"))
    assert generate.main(["--target", str(model), *SHORT, "--prompt", "x"]) == 0


def test_a_reply_that_ends_in_an_error_is_written_and_said(command, tmp_path):
    code, told = command(ids=[(1, 2), (13, 4), (13, 5)])
    assert code == 1
    assert "error: 2 of 3 replies ended early, for the target's logits were not finite" in told.splitlines()[-1]
    ends = [json.loads(line)["finish_reason"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ends == ["length", "error", "error"]
    code, told = command(ids=[(1, 2), (13, 4), (13, 5)])  # nothing is left to decode, and that is not a success
    assert code == 1 and "3 of 3 replies are in" in told and "2 of 3 replies ended early" in told


def test_a_finished_run_removes_its_own_parts_and_no_other_file(command, tmp_path):
    assert command()[0] == 0
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    ours = {"0-of-2": lines[0], "1-of-2": lines[1][:40]}  # the second was cut off
    theirs = {"0-of-3": b"notes\n", "1-of-3": b'{"run": "another"}\n', "2-of-3": b"", "3-of-3": b"\xff" * 9}
    for name, content in {**ours, **theirs}.items():
        (tmp_path / f"out.jsonl.{name}").write_bytes(content)
    assert command()[0] == 0
    assert {path.name.removeprefix("out.jsonl."): path.read_bytes() for path in tmp_path.glob("out.jsonl.*")} == theirs


@pytest.fixture
def asked(monkeypatch) -> list[list[int]]:
    """The batches that were decoded, by the first ids of their prompts."""
    batches, stream = [], Fake.stream

    def record(self, prompts, *_, **__):
        batches.append([prompt[0] for prompt in prompts])
        return stream(self, prompts)

    monkeypatch.setattr(Fake, "stream", record)
    return batches


def test_a_run_that_was_cut_off_decodes_what_is_left(command, tmp_path, asked):
    ids, path = [(number, 1) for number in range(1, 6)], tmp_path / "out.jsonl"
    assert command("--batch-size", 2, ids=ids)[0] == 0
    whole = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["index"] for line in whole] == [0, 1, 2, 3, 4]  # though the fake's rows end in another order
    for kept, left in ((1, [[2, 3], [4, 5]]), (2, [[3, 4], [5]]), (5, [])):
        asked.clear()
        path.write_text("".join(whole[:kept]))
        assert command("--batch-size", 2, ids=ids)[0] == 0
        assert asked == left and path.read_text().splitlines(keepends=True) == whole


def test_so_does_one_of_several_processes(tmp_path, monkeypatch, asked):
    ids, runs = [[number, 1] for number in range(7)], [f"run {number}" for number in range(7)]
    for name, value in {"index": 0, "count": 2, "is_first": True, "wait": None}.items():
        monkeypatch.setattr(session.processes, name, lambda *_, value=value: value)
    monkeypatch.setattr(parts, "merge", lambda *_: None)
    options = generate.Options(output=tmp_path / "out.jsonl", batch_size=2, prompts="x")
    owner = Owner.of_runs(dict(enumerate(runs)))
    part, written = parts.part(options.output, 0, 2), []
    ReplyFile(options.output, owner).write([{"run": runs[0]}])  # the reply to prompt 0 is in the output, others in the part
    for kept, left in ((0, [[1, 4], [5]]), (2, [[5]]), (3, [])):
        asked.clear()
        part.write_text("".join(written[:kept]))
        file, loaded = ReplyFile(options.output, owner), session.pair.Pair(Fake(), None)
        session.share_out(batches.Batches(generate.task_of(options), loaded, asked_for(ids), [0] * 7, runs, file))
        written = part.read_text().splitlines(keepends=True)
        assert asked == left and sorted(json.loads(line)["index"] for line in written) == [1, 4, 5]


def test_lines_may_come_in_any_order_and_each_prompt_once(command, tmp_path, asked):
    ids, path = [(number, 1) for number in range(1, 6)], tmp_path / "out.jsonl"
    assert command("--batch-size", 2, ids=ids)[0] == 0
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[4] + lines[1] + lines[2][:50])
    asked.clear()
    assert command("--batch-size", 2, ids=ids)[0] == 0
    assert asked == [[1, 3], [4]] and path.read_text() == "".join(lines)
    path.write_text("".join(lines) + lines[0])
    code, told = command("--batch-size", 2, ids=ids)
    assert code == 2 and "out.jsonl:6 answers prompt 0, as line 1 does" in told


# What train.distill writes


@pytest.fixture
def distilling(model, tmp_path, monkeypatch, capsys):
    """Runs `train.distill` on six questions, with the fake engine; returns exit code and the last line on stderr."""
    monkeypatch.setattr(plan, "Engine", Fake)
    monkeypatch.setattr(plan.weights, "load_target", lambda *_, **__: None)
    turns = [[("user", f"{n} and {n}?"), ("assistant", "x")] for n in range(6)]
    talks = [{"messages": [{"role": role, "content": said} for role, said in talk]} for talk in turns]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))

    def start(*arguments, target=model, talk=tmp_path / "talk.jsonl", output=tmp_path / "own.jsonl"):
        files = ["--target", target, "--conversations", talk, "--output", output]
        code = distill.command([*map(str, [*files, "--max-new-tokens", 3, "--batch-size", 2, *arguments])])
        return code, (capsys.readouterr().err.splitlines() or [""])[-1]

    return start


def test_prompts_are_done_by_their_numbers_whatever_the_order_of_the_lines(distilling, tmp_path):
    output = tmp_path / "own.jsonl"
    assert distilling()[0] == 0
    lines = output.read_text().splitlines(keepends=True)
    assert [json.loads(line)["number"] for line in lines] == list(range(6))
    output.write_text(lines[4] + lines[1] + lines[0][:9])
    assert distilling()[0] == 0
    assert output.read_text() == "".join(lines)


def test_a_prompt_that_is_answered_twice_is_refused_by_its_line(distilling, tmp_path):
    output = tmp_path / "own.jsonl"
    assert distilling()[0] == 0
    whole = output.read_text()
    foreign = '{"number": 6}\n'
    for more, told in ((whole, ":7 answers prompt 0, as line 1 does"), (foreign, ":7 is no reply to a prompt")):
        output.write_text(whole + more)
        code, error = distilling()
        assert code == 2 and f"own.jsonl{told}" in error
        assert output.read_text() == whole + more


def test_the_same_files_under_other_names_are_the_same_run(distilling, model, tmp_path, monkeypatch):
    assert distilling()[0] == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "copy")
    assert distilling(target="copy", talk="talk.jsonl", output="own.jsonl")[0] == 0
    flip(tmp_path / "copy" / "model.safetensors", 0.5)
    code, told = distilling("--temperature", 1, target="copy")
    assert code == 2 and "(the files of the target differ; temperature was 0.0 and is 1.0)" in told


def test_stop_ids_and_in_bfloat16_the_batch_decide_the_run(distilling, model):
    assert distilling("--dtype", "bfloat16")[0] == 0 and distilling("--dtype", "bfloat16")[0] == 0
    assert "batch_size was 2 and is 3" in distilling("--dtype", "bfloat16", "--batch-size", 3)[1]
    changed_stops(model)
    assert "eos_token_id was [2] and is [7]" in distilling("--dtype", "bfloat16")[1]


def test_a_reply_that_ends_in_an_error_is_not_written(distilling, tmp_path, monkeypatch):
    stream = Fake.stream
    asked = []

    def third_fails(self, prompts, *_, **__):
        asked.extend(prompts)
        return stream(self, [[13] if len(asked) == 4 and at == 1 else [1] for at in range(len(prompts))])

    monkeypatch.setattr(Fake, "stream", third_fails)
    code, told = distilling()
    assert code == 2 and told.startswith("error: --target: the target's logits are not finite at prompt 3; its reply was not")
    lines = (tmp_path / "own.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["number"] for line in lines) == [0, 1]


def test_only_prompts_without_a_reply_are_asked(distilling, tmp_path, asked):
    output = tmp_path / "own.jsonl"
    assert distilling()[0] == 0
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:3]))
    asked.clear()
    assert distilling()[0] == 0
    assert [len(batch) for batch in asked] == [2, 1] and output.read_text().splitlines(keepends=True) == lines


def test_replies_of_an_earlier_version_are_not_said_to_be_anothers(distilling, tmp_path):
    assert distilling()[0] == 0
    settings = tmp_path / "own.jsonl.settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"target": "ab" * 32}))
    code, told = distilling()
    assert code == 2 and "(it was begun by an earlier version, which did not record all bytes of the target)" in told


def test_an_output_among_the_texts_that_are_read_is_refused(model, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("Some words.")
    for command, name in ((distill.command, "own.jsonl"), (main.command, "run")):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(texts)
        arguments = ["--target", model, "--text", texts, "--output", tmp_path / "link" / name]
        assert command(list(map(str, arguments))) == 2
        assert f"{name} lies in {texts}, whose files are read; name a place outside" in capsys.readouterr().err
        assert [path.name for path in texts.iterdir()] == ["a.txt"]


def test_hidden_files_of_a_folder_are_not_read(tmp_path):
    for name in ("b.txt", ".own.jsonl.lock", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Some words.")
    assert text_files.files([tmp_path]) == [tmp_path / "b.txt"]
    assert text_files.files([tmp_path / ".own.jsonl.lock"]) == [tmp_path / ".own.jsonl.lock"]


def test_numbers_that_are_no_numbers_are_refused(tmp_path):
    file = tmp_path / "own.jsonl"
    owner = Owner.of_settings({"prompts": "x"}, {0, 1})
    ReplyFile(file, owner).begin()
    for line in ("{", "[1]", '{"number": true}', '{"number": 1.0}', "[" * 10000):
        file.write_text(line + "\n")
        with pytest.raises(BadInput, match=":1 is no reply to a prompt"):
            ReplyFile(file, owner)

"""Programs that an earlier process compiled are loaded without tracing anything, by everything that decides what they are."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from infer import synthetic
from infer.programs import CACHE_FILE_PATTERN, use_cache
from redrafter_jax.decode import kept, programs
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Recurrent, Shape
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.target import TargetConfig

PROMPTS = [[1, 5, 9], [4, 8, 100]]
CONFIG = TargetConfig(
    vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=8, num_key_value_heads=4, head_dim=8,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    use_cache(tmp_path / "kept")
    yield tmp_path / "kept"


def engine(pair, shape=Shape(2, 2), **more) -> Engine:
    """As a new process would make it, but for what is in the folder."""
    return Engine(pair[0], Recurrent(pair[1], shape), **more)


def texts(made: Engine, new: int = 6) -> list:
    return [reply.token_ids for reply in made.generate(PROMPTS, limits=Limits(new), batch=2)]


def refilled(made: Engine) -> list:
    """By a running batch, which takes turns."""
    scheduler = made.scheduler(2, made.requests(PROMPTS, Sampling(), Limits(6), None), adapts=True)
    found = {scheduler.submit(request): None for request in made.requests(PROMPTS, Sampling(), Limits(6), None)}
    while scheduler.running or scheduler.waiting:
        found |= {event.ticket: event.reply.token_ids for event in scheduler.step() if event.done}
    return list(found.values())


@contextlib.contextmanager
def nothing_is_traced(monkeypatch):
    def traced(*_):
        raise AssertionError("programs are lowered")

    with monkeypatch.context() as patched:
        patched.setattr(programs, "_compile", traced)
        patched.setattr(programs, "_lower_run", traced)
        yield


def files(folder) -> set[str]:
    return {path.name for path in folder.glob("redrafter-*-cache")}


def test_a_second_process_traces_nothing_and_gives_the_same_texts(mha, folder, monkeypatch):
    said = []

    @contextlib.contextmanager
    def saying(what):
        said.append(what)
        yield
        said.append("compiled")

    first = engine(mha)
    first.runner.on_compile = lambda: saying("first")
    expected = texts(first)
    assert said == ["first", "compiled"] and len(files(folder)) == 1
    second = engine(mha)
    second.runner.on_compile = lambda: saying("second")
    with nothing_is_traced(monkeypatch):
        assert texts(second) == expected
        assert len(said) == 2
        with pytest.raises(AssertionError, match="lowered"):  # another bucket: so the fence holds
            texts(engine(mha), new=100)


def test_all_programs_of_a_running_batch_are_kept(mha, folder, monkeypatch):
    shapes = (AUTOREGRESSIVE,)
    expected = refilled(engine(mha, shapes=shapes))
    assert expected == texts(engine(mha))
    with nothing_is_traced(monkeypatch):
        assert refilled(engine(mha, shapes=shapes)) == expected


def test_programs_for_several_devices_are_kept(folder, monkeypatch):
    def decoded(*shape: int) -> list:
        with jax.set_mesh(make_mesh(*shape)):
            target = synthetic.random_target(jax.random.key(0), CONFIG, jnp.float32)
            head = synthetic.random_head(jax.random.key(1), synthetic.head_config(CONFIG, "slim"), jnp.float32)
            return texts(engine((target, head)))

    expected = decoded(2, 4)
    with nothing_is_traced(monkeypatch):
        assert decoded(2, 4) == expected
    assert decoded(1, 1) == expected and len(files(folder)) == 2


def test_whatever_decides_what_is_compiled_is_part_of_the_name(mha, folder, monkeypatch):
    made = engine(mha)
    inputs, bucket = made.prepare(PROMPTS, Sampling(), Limits(6), [0, 1])

    def name(what=bucket, target=made.target, proposer=made.proposer, given=inputs) -> str:
        with jax.set_mesh(made.mesh):
            return kept._file(("batch", what), (target, proposer, given)).name

    usual, others = name(), {}
    assert name() == usual and CACHE_FILE_PATTERN.fullmatch(usual)
    others["bucket"] = name(what=dataclasses.replace(bucket, new=128))
    others["shape"] = name(proposer=dataclasses.replace(made.proposer, shape=Shape(2, 3)))
    others["method"] = name(proposer=Plain())
    others["dtype"] = name(target=jax.tree.map(lambda leaf: leaf.astype("bfloat16"), made.target))
    others["rows"] = name(given=made.prepare(PROMPTS * 2, Sampling(), Limits(6), [0, 1, 2, 3])[0])
    others["sampling"] = name(given=made.prepare(PROMPTS, Sampling(0.7), Limits(6), [0, 1])[0])
    with jax.default_matmul_precision("highest"):
        others["precision"] = name()
    with monkeypatch.context() as patched:
        patched.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        others["flags"] = name()
    with monkeypatch.context() as patched:
        patched.setattr(kept, "_source", lambda: "edited")
        others["source"] = name()
    with monkeypatch.context() as patched:
        patched.setattr(kept, "_processor", lambda: "flags : sse2")
        others["processor"] = name()
    assert len({usual, *others.values()}) == 1 + len(others), others


def test_an_edit_of_the_package_changes_its_hash(tmp_path, monkeypatch):
    (tmp_path / "decode").mkdir()
    (tmp_path / "decode" / "loop.py").write_text("a = 1\n")
    monkeypatch.setattr(kept, "PACKAGE", tmp_path)
    before = kept._source.__wrapped__()
    (tmp_path / "decode" / "loop.py").write_text("a = 2\n")
    edited = kept._source.__wrapped__()
    (tmp_path / "decode" / "loop.py").rename(tmp_path / "loop.py")
    assert len({before, edited, kept._source.__wrapped__()}) == 3


def test_programs_that_jaxs_own_cache_has_are_compiled_again_since_they_could_not_be_kept(mha, folder, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(kept, "_file", lambda *_: None)
        expected = texts(engine(mha))
    assert not files(folder) and list(folder.glob("jit_run-*-cache"))
    assert texts(engine(mha)) == expected and len(files(folder)) == 1
    with nothing_is_traced(monkeypatch):
        assert texts(engine(mha)) == expected


class Own(Plain):
    """Of somebody's own, whose source nobody hashes."""


def test_what_drafts_by_code_outside_the_package_is_not_kept(mha, folder):
    jax.tree_util.register_dataclass(Own, data_fields=[], meta_fields=[])
    expected = [reply.token_ids for reply in Engine(mha[0], Plain()).generate(PROMPTS, limits=Limits(6))]
    before = files(folder)
    assert [reply.token_ids for reply in Engine(mha[0], Own()).generate(PROMPTS, limits=Limits(6))] == expected
    assert len(before) == 1 and files(folder) == before


@pytest.mark.parametrize("content", [b"", b"not a program", "cut off", "from elsewhere"])
def test_a_file_that_cannot_be_used_is_made_again(mha, folder, content, monkeypatch):
    expected = texts(engine(mha))
    (file,) = (folder / name for name in files(folder))
    whole = file.read_bytes()
    if content == "from elsewhere":
        monkeypatch.setattr(kept.serialize_executable, "deserialize_and_load", lambda *_: 1 / 0)
    else:
        file.write_bytes(whole[: len(whole) // 2] if content == "cut off" else content)
    assert texts(engine(mha)) == expected
    assert len(file.read_bytes()) > len(whole) // 2
    assert not list(folder.glob(".redrafter-*"))


def test_the_limit_of_the_folder_holds_for_them_too_and_what_was_not_used_goes_first(mha, folder, monkeypatch):
    expected = texts(engine(mha))
    (first,) = (folder / name for name in files(folder))
    size = sum(file.stat().st_size for file in folder.glob("*-cache"))
    (folder / "jit_old-1a-cache").write_bytes(bytes(size))
    (folder / "jit_old-1a-atime").write_bytes((1).to_bytes(8, "little"))
    jax.config.update("jax_compilation_cache_max_size", int(2.9 * size))
    assert texts(engine(mha, Shape(1, 2))) == expected
    assert len(files(folder)) == 2 and first.exists() and not list(folder.glob("jit_old*"))
    jax.config.update("jax_compilation_cache_max_size", size // 4)
    assert texts(engine(mha, Shape(1, 3))) == expected
    assert not files(folder)


def test_nothing_is_kept_without_a_folder_or_where_it_cannot_be_written(mha, folder, monkeypatch):
    monkeypatch.setattr(kept.serialize_executable, "serialize", lambda *_: 1 / 0)
    expected = texts(engine(mha))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    assert texts(engine(mha)) == expected
    assert not files(folder) and not list(folder.glob(".redrafter-*"))

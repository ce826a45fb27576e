"""Programs for TPU slices, compiled without one: what they hold, what they gather, and the commands that report it."""

import dataclasses
import functools
import json
import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from infer.fit import __main__ as fit
from infer.fit import points
from infer.programs import use_cache
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Shape
from redrafter_jax.devices import compile_cache, mesh, placement, processes
from redrafter_jax.model import cache
from redrafter_jax.slices import compiler, roofline, topology
from tests.on_slice import BATCH, HEAD, MESH, SHAPE, TARGET, needs_compiler
from train.fit import __main__ as train_fit
from train.fit import points as step_points


@functools.cache
def subject(sampling: str = "greedy") -> points.Workload:
    return points.Workload(topology.find_slice("v5e:2x4"), TARGET, HEAD, "bfloat16", 4000, sampling)


@functools.cache
def compiled(shape: Shape, sampling: str = "greedy") -> compiler.Program:
    return points.compile_point(subject(sampling), MESH, BATCH, shape)


def cache_bytes(shape: Shape) -> int:
    with jax.set_mesh(subject().slice.mesh(*MESH)):
        kv = points.arrays(subject(), TARGET.num_hidden_layers, BATCH, shape)[2].cache
        return placement.bytes_of((kv.keys, kv.values))


@needs_compiler
def test_what_is_compiled_carries_the_features_that_the_head_reads():
    """Also where a target is cut to fewer layers than the head reads of it."""
    options = train_fit.Options("", batch=(4,), row_length=64, positions=3, head="best")
    deep = dataclasses.replace(TARGET, num_hidden_layers=8)
    trained = step_points.StepSubject(subject().slice, deep, train_fit.recipe_of(options), "bfloat16")
    with jax.set_mesh(subject().slice.mesh(*MESH)):
        frozen, state, _ = step_points.arrays(trained, 4)
        assert frozen.features == state.drafter.config.depths == (2, 4)
        cut, same, _ = step_points.arrays(trained.of_depth(2), 4)
        assert cut.features == (0, 1) and same.drafter.config == state.drafter.config
        reads = dataclasses.replace(subject(), config=deep, head=state.drafter.config)
        for layers in (1, 2, 8):
            target, proposer, state = points.arrays(reads, layers, BATCH, Shape(2, 2))
            assert len(target.features) == len(proposer.features) == 2 and all(0 <= each < layers for each in target.features)
            assert state.h.shape == (BATCH, 3 * TARGET.hidden_size)


@needs_compiler
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:2x2x4", "v5p:4x4x4"])
def test_every_mesh_of_a_slice_can_be_laid_over_it(name):
    slice_ = topology.find_slice(name)
    chips = len(slice_.devices)
    for model in (size for size in range(1, chips + 1) if chips % size == 0):
        found = slice_.mesh(chips // model, model)
        assert {device.id for device in found.devices.flat} == {device.id for device in slice_.devices}


@needs_compiler
def test_a_mesh_is_laid_over_chips_that_fill_no_box_too():
    devices = topology.find_slice("v6e:2x4").devices[:5]
    assert list(mesh.of_devices(devices, 5, 1).devices.flat) == list(devices)


@needs_compiler
def test_a_round_compiles_for_a_slice_and_computes_what_is_counted_by_hand():
    program, setting = compiled(SHAPE), subject().setting(*MESH, BATCH, SHAPE)
    by_hand = roofline.verify(setting, SHAPE.nodes).flops + roofline.draft(setting, SHAPE.width, SHAPE.length).flops
    assert program.flops == pytest.approx(by_hand, rel=0.1)
    assert program.whole and program.cycles["draft"] > 0 and program.cycles["verify"] > 0
    assert compiler.fits(program.held, subject().slice.chip)


@needs_compiler
@pytest.mark.parametrize("shape", [AUTOREGRESSIVE, SHAPE], ids=points.name)
def test_the_compiled_round_updates_the_cache_in_place_and_holds_no_second_one(shape):
    program, size = compiled(shape), cache_bytes(shape)
    assert program.aliased >= size
    assert program.outputs - program.aliased < 0.01 * size
    assert program.temporaries < 0.5 * size


@needs_compiler
@pytest.mark.parametrize("shape", [AUTOREGRESSIVE, SHAPE], ids=points.name)
def test_what_was_accepted_is_written_in_one_loop_over_the_rows_of_a_shard(shape):
    lines = [line for lines in compiled(shape).text.computations.values() for line in lines]
    assert sum(" while(" in line and "/commit/" in line for line in lines) == 1


@needs_compiler
def test_the_longest_beam_that_is_written_in_that_loop_is_written_in_place_too():
    longest = Shape(1, cache.MAX_TOKENS_BY_ROW - 1)
    program, size = compiled(longest), cache_bytes(longest)
    lines = [line for lines in program.text.computations.values() for line in lines]
    assert sum(" while(" in line and "/commit/" in line for line in lines) == 1
    assert program.aliased >= size and program.temporaries < 0.5 * size


@needs_compiler
def test_prompts_are_read_without_gathering_the_vocabulary_and_fit():
    program = points.compile_prefill(subject(), MESH, BATCH, SHAPE)
    assert program.whole and compiler.fits(program.held, subject().slice.chip)
    assert program.outputs >= cache_bytes(SHAPE)
    gathered = [line.split(" all-gather")[0] for line in program.text.gathers_of(BATCH)]
    whole, part = TARGET.vocab_size, TARGET.vocab_size // MESH[1]  # parts may also lie beside each other
    assert gathered and not any(re.search(rf"\b({whole}|{part})\b", shape) for shape in gathered)


def logits(nodes: int) -> int:
    """Elements of a data shard's logits, whole in V."""
    return BATCH // MESH[0] * nodes * TARGET.vocab_size


@needs_compiler
def test_no_shard_gathers_the_vocabulary():
    assert not compiled(SHAPE).text.gathers_of(logits(1) // 2)
    assert not compiled(AUTOREGRESSIVE, "sampled").text.gathers_of(logits(1) // 2)


@needs_compiler
def test_a_program_that_gathers_the_vocabulary_would_be_noticed():
    def gathers(target, h_BD):
        return jax.sharding.reshard(target.unembed(h_BD), jax.P("data", None))

    with jax.set_mesh(subject().slice.mesh(*MESH)):
        target = compiler.target(TARGET, "bfloat16")
        h_BD = compiler.abstract((BATCH, TARGET.hidden_size), jnp.bfloat16, jax.P("data", None))
        program = compiler.compile_program(jax.jit(gathers), target, h_BD)
    assert program.text.gathers_of(logits(1))


@needs_compiler
def test_every_layer_of_the_target_costs_the_same_so_two_depths_tell_the_rest():
    deep = dataclasses.replace(subject(), config=dataclasses.replace(TARGET, num_hidden_layers=8))
    line = points.compile_point(deep, MESH, BATCH, AUTOREGRESSIVE)
    whole = points.compile_point(dataclasses.replace(deep, whole=True), MESH, BATCH, AUTOREGRESSIVE)
    assert not line.whole and whole.whole
    assert line.flops == pytest.approx(whole.flops, rel=0.02)
    assert line.arguments == pytest.approx(whole.arguments, rel=0.02)


@needs_compiler
def test_the_compilation_cache_is_left_alone_since_a_program_could_not_be_read_back(tmp_path):
    use_cache(tmp_path)
    with jax.set_mesh(subject().slice.mesh(*MESH)):
        x_B = compiler.abstract((BATCH,), jnp.float32, jax.P("data"))
        for _ in range(2):
            assert compiler.compile_program(jax.jit(lambda x_B: x_B + 1), x_B).held > 0  # one program of two functions
    assert not list(tmp_path.iterdir())
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_the_compilation_cache_is_put_back_whatever_happens(tmp_path):
    use_cache(tmp_path)
    with pytest.raises(KeyError), compile_cache.without_persistent_cache():
        jax.jit(lambda x: x + 1).lower(1).compile()
        assert not list(tmp_path.iterdir())
        raise KeyError
    jax.jit(lambda x: x + 2).lower(1).compile()
    assert list(tmp_path.iterdir())


def test_points_are_worked_on_beside_each_other_and_dropped_where_one_fails():
    ran, end = [], threading.Event()

    def work(number: int) -> None:
        ran.append(number)
        end.wait(60)

    together = min(compiler.MAX_COMPILATIONS, processes.count_cores())
    with pytest.raises(KeyError), compiler.side_by_side() as pool:
        for number in range(100):
            pool.submit(work, number)
        patience = time.monotonic() + 20
        while len(ran) < together and time.monotonic() < patience:  # none of them ends
            time.sleep(0.01)
        begun = len(ran)
        threading.Timer(0.5, end.set).start()  # those that have begun end after the others have been dropped
        raise KeyError
    assert begun == len(ran) == together


@needs_compiler
def test_a_training_step_compiles_and_replaces_what_it_trains_in_place():
    alone, joint = (compiled_step(train_target) for train_target in ("none", "lora"))
    chip = subject().slice.chip
    assert joint.seconds(chip) > 1.3 * alone.seconds(chip)  # another pass of the target, and one back through it


def compiled_step(train_target: str):
    """The program of an update, which replaces the head, and the adapter where there is one."""
    options = train_fit.Options("", batch=(4,), row_length=64, positions=3, train_target=train_target)
    trained = step_points.StepSubject(subject().slice, TARGET, train_fit.recipe_of(options), "bfloat16")
    program = step_points.compile_step(trained, MESH, 4)
    with jax.set_mesh(subject().slice.mesh(*MESH)):
        state = step_points.arrays(trained, 4)[1]
        size = placement.bytes_of((state.drafter, state.optimizer, state.lora))
    assert program.aliased >= 0.99 * size
    assert program.held < 0.2 * subject().slice.chip.usable_bytes
    return program


@needs_compiler
def test_the_command_reports_a_table_and_a_recommendation(tmp_path, capsys):
    small = {"model_type": "llama", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(small))
    given = ["--model", str(tmp_path), "--topology", "v5e:2x2", "--mesh", "1", "4", "--batch", "2"]
    given += ["--context", "256", "--beams", "2x2"]
    assert fit.main([*given, "--most", "50", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["shape"] for row in report["rows"]] == ["AR", "2x2"]
    assert all(row["fits"] and row["round_seconds"] > 0 for row in report["rows"])
    (advice,) = report["advice"]
    assert advice["mesh"] == [1, 4] and advice["shape"] == "2x2" and advice["cost"] > 1
    assert [one["what"] for one in advice["checked"]] == ["step", "round", "prefill"]
    assert fit.main([*given, "--unchecked"]) == 0
    assert "Not compiled with all layers" in capsys.readouterr().out


@needs_compiler
@pytest.mark.parametrize("command", [fit, train_fit], ids=["infer", "train"])
def test_a_slice_that_the_compiler_does_not_know_is_refused_in_one_sentence(command, capsys):
    assert command.main(["--model", "llama-7b", "--topology", "v5e:3x3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --topology: libtpu does not know v5e:3x3") and error.count("\n") == 1

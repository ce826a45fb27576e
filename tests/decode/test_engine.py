"""An engine decodes on the mesh of its target, from any thread and whatever mesh is set there."""

import asyncio
import threading

import jax

import infer
from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.decode.loop import Shape
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import weights
from tests import support

SHAPE, PROMPTS = Shape(2, 2), [[5, 9, 200, 3], [7, 7]]


def on(mesh: tuple[int, int]) -> Engine:
    with jax.set_mesh(make_mesh(*mesh)):
        models = weights.load_target(support.MODELS / "target_mha"), weights.load_drafter(support.MODELS / "drafter_mha_rnn")
    return Engine(*models, SHAPE)


def texts(engine: Engine) -> list[list[int]]:
    return [reply.token_ids for reply in engine.generate(PROMPTS, limits=Limits(8), batch=2)]


def test_two_engines_on_two_meshes_take_turns_also_in_threads_that_have_no_mesh():
    one, other = on((1, 1)), on((2, 1))
    expected = texts(one)
    found = {}

    def work(name: str, engine: Engine) -> None:
        found[name] = texts(engine)

    threads = [threading.Thread(target=work, args=pair) for pair in (("one", one), ("other", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"one": expected, "other": expected}
    with jax.set_mesh(make_mesh(4, 1)):
        assert texts(other) == texts(one) == texts(other) == expected
    assert dict(jax.sharding.get_mesh().shape) == {"data": 1, "model": 1}


def test_weights_are_loaded_onto_one_device_where_no_mesh_is_set():
    def work():
        assert not jax.sharding.get_mesh().axis_names
        engine = Engine(
            weights.load_target(support.MODELS / "target_mha"), weights.load_drafter(support.MODELS / "drafter_mha_rnn"), SHAPE
        )
        return engine.mesh.size, texts(engine)

    assert asyncio.run(asyncio.to_thread(work)) == (1, texts(on((1, 1))))


def test_a_stream_leaves_the_mesh_of_its_reader_alone():
    engine = on((2, 1))
    for _ in engine.stream(PROMPTS, limits=Limits(6), seeds=[0, 1], rounds=1):
        assert dict(jax.sharding.get_mesh().shape) == {"data": 1, "model": 1}


def test_a_pair_completes_in_another_thread_and_beside_one_of_another_mesh():
    pair, wide = infer.load(shape=SHAPE), infer.load(shape=SHAPE, mesh=(2, 1))
    prompt = "def read(self, size):\n"
    expected = pair.complete(prompt, max_new_tokens=8).reply.token_ids
    assert wide.complete(prompt, max_new_tokens=8).reply.token_ids == expected
    assert asyncio.run(asyncio.to_thread(pair.complete, prompt, 8)).reply.token_ids == expected
    assert pair.complete(prompt, max_new_tokens=8).reply.token_ids == expected

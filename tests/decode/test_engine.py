"""An engine decodes on the mesh of its target, from any thread and whatever mesh is set there."""

import asyncio
import threading

import jax
import pytest

import infer
from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from tests import support

SHAPE, PROMPTS = Shape(2, 2), [[5, 9, 200, 3], [7, 7]]


def on(mesh: tuple[int, int]) -> Engine:
    with jax.set_mesh(make_mesh(*mesh)):
        models = weights.load_target(support.MODELS / "target_mha"), weights.load_drafter(support.MODELS / "drafter_mha_rnn")
    return Engine(models[0], Recurrent(models[1], SHAPE))


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
        target, head = weights.load_target(support.MODELS / "target_mha"), weights.load_drafter(support.MODELS / "drafter_mha_rnn")
        engine = Engine(target, Recurrent(head, SHAPE))
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


@pytest.mark.parametrize("of, said", [(lambda head: head, "not be the head alone"), (lambda head: (2, 2), "not (2, 2)")])
def test_what_is_no_proposer_is_refused_with_what_would_do(mha, of, said):
    with pytest.raises(BadInput) as caught:
        Engine(mha[0], of(mha[1]))
    assert "such as Recurrent(drafter, Shape(4, 4))" in str(caught.value) and str(caught.value).endswith(said)

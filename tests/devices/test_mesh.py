"""Which mesh is chosen and why, which are refused, and in what words."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import pytest

from redrafter_jax.devices import mesh, mesh_choice, placement
from redrafter_jax.errors import BadInput
from redrafter_jax.model import cache
from redrafter_jax.model.drafter import Drafter, DrafterConfig, full
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import Target, TargetConfig

Footprint = functools.partial(placement.Footprint, option="--batch-size")

SEVEN_B, EIGHT_B, SEVENTY_B = (SHAPES[name] for name in ("llama-7b", "llama-3.1-8b", "llama-3.1-70b"))
GB = 10**9


@pytest.mark.parametrize(
    ("load", "devices", "memory", "chosen", "words"),
    [
        (Footprint(EIGHT_B), 1, None, (1, 1), "there is one device"),
        (Footprint(EIGHT_B, rows=8), 8, None, (1, 1), "share one host's cores"),
        (
            Footprint(EIGHT_B, rows=8, size=16 * GB),
            8,
            80 * GB,
            (8, 1),
            "model whole takes 16 GB of each device's 80 GB, and --batch-size 8",
        ),
        (Footprint(EIGHT_B, rows=1, size=16 * GB), 8, 80 * GB, (1, 8), "model takes more of the 8 devices"),
        (Footprint(EIGHT_B, rows=1, size=16 * GB), 64, 80 * GB, (1, 8), "the model whole"),  # no more: 32 heads, at least 1 GB each
        (Footprint(EIGHT_B, rows=1, size=0.1 * GB), 8, 80 * GB, (1, 1), "the model whole"),
        (Footprint(EIGHT_B, rows=8, size=16 * GB), 8, 16 * GB, (4, 2), "split into 2 takes 8 GB of each device's 16 GB"),
        (Footprint(EIGHT_B, rows=6, size=16 * GB), 8, 16 * GB, (2, 4), "--batch-size 6 splits into 2; model takes more of the 8"),
        (Footprint(EIGHT_B, rows=5, size=0.1 * GB), 8, 80 * GB, (1, 1), "the model whole"),  # no five of eight
        (
            Footprint(SEVENTY_B, rows=8, size=141 * GB),
            8,
            16 * GB,
            (1, 8),
            "are 17.6 GB for each device, too much for 16 GB",
        ),
        (Footprint(SEVENTY_B, rows=8, size=141 * GB, spread=True), 16, 16 * GB, (8, 2), "split into 16 takes 8.81 GB of each"),
        (
            Footprint(SEVEN_B, rows=64, size=14 * GB, cache=73 * GB),
            8,
            80 * GB,
            (8, 1),
            "87 GB to hold: the model whole takes 23.1 GB",
        ),
        (
            Footprint(SEVENTY_B, size=141 * GB, cache=46 * GB),
            16,
            16 * GB,
            (1, 16),
            "are 14.6 GB for each device, too much",
        ),  # 8 heads
    ],
)
def test_the_mesh_that_is_chosen(load, devices, memory, chosen, words):
    found, reason = mesh_choice.recommend(load, devices, memory)
    assert found == chosen
    assert words in reason


@pytest.mark.parametrize(
    ("change", "asked", "words"),
    [
        ({}, (2, 3), "--mesh 2 3: 3 does not divide the target's num_attention_heads 32; 8 1, 4 2, 2 4, 1 8, 4 1 and 2 2 would do"),
        ({"num_key_value_heads": 3, "num_attention_heads": 24}, (1, 8), "8 does not divide the target's num_key_value_heads 3"),
        ({"vocab_size": 128255}, (1, 2), "2 does not divide the target's vocab_size 128255; 8 1, 4 1, 2 1 and 1 1 would do"),
        ({"intermediate_size": 14}, (1, 4), "4 does not divide the target's intermediate_size 14"),
        ({}, (3, 1), "--batch-size 8 should be a multiple of the 3 data shards"),
        ({}, (4, 4), "it needs 16 devices, and 8 are visible"),
        ({}, (0, 1), "--mesh should be two whole numbers from 1 up, not 0 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_in_one_sentence_that_says_which_would_do(change, asked, words):
    with pytest.raises(BadInput) as error:
        mesh_choice.check(Footprint(dataclasses.replace(EIGHT_B, **change), rows=8), asked, 8, what="--mesh")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("load", "devices", "memory", "chosen", "words"),
    [
        (
            Footprint(EIGHT_B, rows=8, size=16 * GB),
            8,
            80 * GB,
            (1, 8),
            "with the model split into 8 a device reads 2 GB of its 80 GB",
        ),
        (Footprint(EIGHT_B, rows=8, size=16 * GB), 64, 80 * GB, (8, 8), "--batch-size 8 splits into 8"),
        (Footprint(EIGHT_B, rows=8, size=0.1 * GB), 8, 80 * GB, (8, 1), "with the model whole"),
        (Footprint(EIGHT_B, rows=5, size=4 * GB), 8, 80 * GB, (1, 2), "split into 2"),  # four would read less than is worth it
        (Footprint(SEVENTY_B, rows=8, size=141 * GB), 8, 16 * GB, (1, 8), "too much for 16 GB"),
        (Footprint(SEVENTY_B, rows=8, size=141 * GB, cache=46 * GB), 16, 32 * GB, (1, 16), "187 GB to hold"),
    ],
)
def test_the_mesh_that_is_chosen_for_decoding_reads_the_weights_in_many_parts(load, devices, memory, chosen, words):
    found, reason = mesh_choice.recommend(load, devices, memory, prefer="model")
    assert found == chosen
    assert words in reason


@pytest.mark.parametrize(("together", "chosen"), [(True, (8, 1)), (False, (1, 8))])
def test_training_splits_rows_and_decoding_splits_weights(together, chosen, monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 80 * GB})
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * 8)
    monkeypatch.setattr(jax, "devices", lambda: [device] * 8)
    found, why = mesh_choice.resolve(Footprint(EIGHT_B, rows=8, size=16 * GB), None, together)
    assert found == chosen
    assert why.startswith(f"mesh {chosen[0]} {chosen[1]}: 16 GB to hold")


def test_a_target_too_large_for_the_devices_of_one_process_is_split_over_those_of_all(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 32 * GB})
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * 4)
    monkeypatch.setattr(jax, "devices", lambda: [device] * 8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert mesh_choice.resolve(Footprint(SEVENTY_B, rows=8, size=141 * GB), None, together=False)[0] == (1, 8)
    assert mesh_choice.resolve(Footprint(EIGHT_B, rows=8, size=16 * GB), None, together=False)[0] == (1, 4)
    with pytest.raises(BadInput, match="all 8 devices of the 2 processes, or at most the 4 of one; 8 1, 4 2, 2 4 and 1 8 would do"):
        mesh_choice.resolve(Footprint(EIGHT_B, rows=8), (3, 2), together=False)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    with pytest.raises(BadInput, match="of a slice of 2 hosts: give --distributed on each of them"):
        mesh_choice.resolve(Footprint(EIGHT_B), None, together=False, joins="--distributed")


def test_processes_that_work_together_leave_no_device_out():
    assert mesh_choice.recommend(Footprint(EIGHT_B, rows=8), 8, None, all_devices=True) == (
        (8, 1),
        "the processes work on all their 8 devices together",
    )
    assert mesh_choice.recommend(Footprint(EIGHT_B, rows=6), 8, None, all_devices=True)[0] == (2, 4)
    assert mesh_choice.recommend(Footprint(EIGHT_B, rows=2, size=0.1 * GB), 8, 80 * GB, all_devices=True)[0] == (2, 4)
    assert mesh_choice.recommend(Footprint(EIGHT_B, rows=2, size=0.1 * GB), 8, 80 * GB)[0] == (2, 1)
    odd = dataclasses.replace(EIGHT_B, vocab_size=128255)
    with pytest.raises(BadInput) as error:
        mesh_choice.recommend(Footprint(odd, rows=6), 4, None, all_devices=True)
    assert "no mesh uses all 4 devices of the processes: --batch-size 6 should be a multiple of the 4 data" in str(error.value)
    with pytest.raises(BadInput, match="multiple of the 8 data shards; 4 2, 2 4 and 1 8 would do"):
        mesh_choice.check(Footprint(EIGHT_B, rows=4), (8, 1), 8, all_devices=True)


def test_the_head_counts_and_few_key_value_heads_do_not_stand_in_the_way():
    assert (
        Footprint(EIGHT_B, DrafterConfig(vocab_size=128256, hidden_size=4096, exit_size=4098)).why_not(1, 4)
        == "4 does not divide the head's exit_size 4098"
    )
    assert Footprint(EIGHT_B, rows=1).why_not(1, 16) is None
    assert placement.repeat_kv_heads(EIGHT_B, 16).num_key_value_heads == 16
    assert placement.repeat_kv_heads(EIGHT_B, 4) == EIGHT_B


def test_the_bytes_are_those_of_all_weights_however_many_layers_there_are():
    config = TargetConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        attention_bias=True,
    )
    head = DrafterConfig(vocab_size=256, hidden_size=64, exit_size=96, num_blocks=2)
    size = lambda made: sum(leaf.nbytes for leaf in jax.tree.leaves(made))  # noqa: E731
    for dtype in ("float32", "bfloat16"):
        target = Target(jax.random.key(0), config, jnp.dtype(dtype))
        assert placement.bytes_of_target(config, dtype) == size(target)
        assert placement.bytes_read_by_step(config, dtype) == size(target) - target.embedding[...].nbytes
        made = cache.empty(5, 3, 2, 40, 16, jnp.dtype(dtype))
        assert 3 * 40 * placement.bytes_of_token(config, dtype) == size((made.keys, made.values))
        for each in (
            head,
            full(256, 64),
            dataclasses.replace(head, exit_size=64, tied=True),
            dataclasses.replace(head, exit_size=128, draft_vocab=32),
        ):
            assert placement.bytes_of_head(each, dtype) == size(Drafter(jax.random.key(0), each, jnp.dtype(dtype)))


def test_bytes_of_the_matrices_are_what_they_are_by_hand_and_need_no_device():
    """Of Llama 2 7B: 6.74 billion weights, as published; counted in well under a second, on a mesh of no devices."""
    matrices = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    norms = 65 * 4096
    assert placement.bytes_of_target(SEVEN_B, "bfloat16") == 2 * (matrices + norms)
    with mesh.on_paper(16, 32):
        assert placement.bytes_of_target(SEVENTY_B, "bfloat16") == pytest.approx(141.1e9, rel=1e-3)


def test_a_mesh_of_other_axes_is_none_of_ours():
    other = jax.sharding.Mesh(jax.devices()[:2], ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(other), mesh.current_or_single():
        assert jax.sharding.get_mesh().axis_names == mesh.AXES
    with jax.set_mesh(mesh.make_mesh(1, 2)), mesh.current_or_single():
        assert jax.sharding.get_mesh().shape == {"data": 1, "model": 2}

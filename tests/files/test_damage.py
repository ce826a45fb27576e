"""Damaged checkpoints are found, named and renamed, and the run resumes from an older one."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint, damage
from tests.damaged import HEAD, empty_all, flip, largest

TRAIN = (jnp.int32(4), {"m": HEAD["a"] * 1e-6})
LIKE = {"head": HEAD, "train": TRAIN}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    with checkpoint.Checkpoints(folder, keep=3, best="loss") as kept:
        for step in (2, 4, 6):
            kept.save(step, {"loss": 1.0 / step}, head=HEAD | {"a": HEAD["a"] + step}, train=TRAIN)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "with a space"))


DAMAGES = {
    "head cut": lambda step: os.truncate(largest(step / "head"), 1000),
    "head emptied": lambda step: os.truncate(largest(step / "head"), 0),
    "head flipped": lambda step: flip(largest(step / "head")),
    "optimizer gone": lambda step: largest(step / "train").unlink(),
    "optimizer flipped": lambda step: flip(largest(step / "train")),
    "metadata gone": lambda step: (step / "head" / "_METADATA").unlink(),
    "manifest gone": lambda step: (step / "train" / "manifest.ocdbt").unlink(),
    "sums gone": lambda step: (step / "sums" / "manifest.ocdbt").unlink(),
    "head's folder gone": lambda step: shutil.rmtree(step / "head"),
    "scores emptied": lambda step: os.truncate(step / "metrics" / "metrics", 0),
    "all files emptied": empty_all,
    "all gone": lambda step: [shutil.rmtree(part) if part.is_dir() else part.unlink() for part in list(step.iterdir())],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_is_the_newest(name, folder):
    DAMAGES[name](folder / "6")
    said, goes_on = checkpoint.set_aside_damaged(folder, **LIKE)
    assert said.startswith(f"checkpoint 6 in {folder} cannot be read (") and said.endswith("; it is 6.damaged now")
    assert goes_on == "going on from step 4"
    with checkpoint.Checkpoints(folder, best="loss") as kept:
        assert kept.steps == [2, 4]
        np.testing.assert_array_equal(kept.restore(**LIKE)["head"]["a"], HEAD["a"] + 4)


def test_a_step_that_was_damaged_is_saved_again_and_damaged_again(folder):
    for count in (1, 2):
        empty_all(folder / "6")
        checkpoint.set_aside_damaged(folder, **LIKE)
        with checkpoint.Checkpoints(folder, keep=3, best="loss") as kept:
            kept.save(6, {"loss": 0.1}, head=HEAD, train=TRAIN)
        with checkpoint.Checkpoints(folder, keep=3, best="loss") as kept:
            assert kept.steps == [2, 4, 6] and checkpoint.set_aside_damaged(folder, **LIKE) == []
            np.testing.assert_array_equal(kept.restore(**LIKE)["head"]["a"], HEAD["a"])
        assert len(list(folder.glob("6.damaged*"))) == count


def test_two_damaged_ones_are_both_named(folder):
    flip(largest(folder / "6" / "head"))
    empty_all(folder / "4")
    *said, goes_on = checkpoint.set_aside_damaged(folder, **LIKE)
    assert [sentence.split()[1] for sentence in said] == ["6", "4"] and goes_on.endswith("step 2")
    assert damage.list_steps(folder) == [2]


def test_an_older_ones_scores_do_not_stop_a_run(folder):
    os.truncate(folder / "2" / "metrics" / "metrics", 0)
    assert "checkpoint 2 in" in checkpoint.set_aside_damaged(folder, **LIKE)[0]
    with checkpoint.Checkpoints(folder, best="loss") as kept:
        assert kept.steps == [4, 6]


def test_where_none_can_be_read_nothing_is_renamed(folder):
    for step in (2, 4, 6):
        empty_all(folder / str(step))
    with pytest.raises(BadInput, match="no checkpoint in .* can be read .6: .*4: .*2: .*begin anew"):
        checkpoint.set_aside_damaged(folder, **LIKE)
    assert damage.list_steps(folder) == [2, 4, 6]


def test_numbers_that_are_not_finite_are_damage(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as kept:
        kept.save(1, head=HEAD)
        kept.save(2, head=HEAD | {"b": HEAD["b"].at[3].set(jnp.nan)})
    assert checkpoint.find_newest_sound(tmp_path, head=HEAD) == (1, {2: "head['b'] holds numbers that are not finite"})


def test_arrays_of_other_shapes_are_no_damage(folder):
    with pytest.raises(damage.ShapeMismatch, match=r"head\['a'\] is float32 \[64, 64\], not float32 \[64, 65\]"):
        checkpoint.find_newest_sound(folder, head=HEAD | {"a": jnp.zeros((64, 65))})


def test_checkpoints_of_earlier_versions_have_no_sums_and_are_read(folder):
    for step in (2, 4, 6):
        shutil.rmtree(folder / str(step) / "sums")
    assert checkpoint.find_newest_sound(folder, **LIKE) == (6, {})


def test_a_folder_without_checkpoints_has_nothing_damaged(tmp_path):
    assert checkpoint.set_aside_damaged(tmp_path / "nowhere", **LIKE) == []


def test_a_bucket_is_no_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(checkpoint.resolve_folder("gs://bucket/run")) == "gs://bucket/run"
    assert str(checkpoint.resolve_folder("run")) == str(tmp_path / "run")


def test_sums_are_the_same_on_any_mesh():
    from redrafter_jax.devices.mesh import make_mesh

    leaf = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    found = []
    for shape in ((1, 1), (4, 2)):
        jax.set_mesh(make_mesh(*shape))
        on = jax.device_put(leaf, jax.P("data", "model"))
        found.append(int(damage.sum_bits({"head": {"a": on}})["head"][0]))
    assert found == [int(leaf.view(np.uint32).sum(dtype=np.uint32))] * 2


def test_all_processes_take_the_first_ones_verdict(folder, monkeypatch):
    """The second process of two reads nothing, renames nothing, and raises what the first found."""
    verdicts = iter([{"renamed": ["checkpoint 6 ..."]}, {"error": "no checkpoint can be read"}])
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "broadcast_text", lambda text: json.dumps(next(verdicts)))
    empty_all(folder / "6")
    assert checkpoint.set_aside_damaged(folder, **LIKE) == ["checkpoint 6 ..."]
    with pytest.raises(BadInput, match="no checkpoint can be read"):
        checkpoint.set_aside_damaged(folder, **LIKE)
    assert damage.list_steps(folder) == [2, 4, 6]


def test_the_first_processs_text_is_everyones(monkeypatch):
    def gathers(texts):
        """Acts as the second of two processes; the first brings another text."""
        first = np.frombuffer(texts[0].encode(), np.uint8)
        return lambda own: np.stack([np.int32(len(first)) if own.ndim == 0 else first, own])

    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "gather", gathers(["the first's, ä"]))
    assert processes.broadcast_text("another") == "the first's, ä"

"""`train.calibrate`: the fit, the command, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.files import weights
from redrafter_jax.model.drafter import Drafter, slim
from tests.support import load_target, with_features
from tests.texts import with_tokenizer
from train.calibrate import __main__ as calibrate
from train.calibrate import fit
from train.calibrate import rounds as each_round


def rounds(count: int = 4000) -> dict[str, np.ndarray]:
    """Chains of two nodes: of depth 1 accepted with sigmoid(2 logit(p) - 1), and of depth 2, behind these, as the scores say."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0.05, 0.95, count)
    second = first * rng.uniform(0.3, 1.0, count)
    truth = 1 / (1 + np.exp(-(2 * np.log(first / (1 - first)) - 1)))
    draws = rng.uniform(size=count)
    shape = np.ones((count, 3), int)
    return {
        "depth": shape * [0, 1, 2],
        "parent": shape * [0, 0, 1],
        "score": np.log(np.stack([np.ones(count), first, second], axis=1)),
        "valid": shape > 0,
        "accepted": np.stack([draws >= 0, draws < truth, draws < np.minimum(second, truth)], axis=1),
    }


def test_the_fit_finds_slope_and_bias_and_leaves_right_scores_alone():
    found = rounds()
    table = fit.fit(found, 3)
    assert table[0] == pytest.approx((2.0, -1.0), abs=0.15)
    assert table[2] == (1.0, 0.0)  # a depth without nodes
    value = fit.apply(found, table)
    assert np.all(value[:, 1:] <= np.take_along_axis(value, found["parent"], axis=1)[:, 1:])
    assert np.exp(value[:, 1]).mean() == pytest.approx(found["accepted"][:, 1].mean(), abs=0.01)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_fit_ends_where_the_scores_are_far_off(sign):
    """As sure as can be and wrong, half of the time or always: the likeliest numbers, within their range."""
    rng = np.random.default_rng(0)
    score = np.full(2000, np.log(1 / (1 + np.exp(-sign * 20.0))))
    for share in (0.5, 0.0 if sign > 0 else 1.0):
        found = {"depth": np.ones((2000, 1), int), "valid": np.ones((2000, 1), bool), "parent": np.zeros((2000, 1), int)}
        found |= {"score": score[:, None], "accepted": (rng.uniform(size=2000) < share)[:, None]}
        ((slope, bias),) = fit.fit(found, 1)
        assert 0 < slope <= 100 and abs(bias) <= 100
        assert abs(1 / (1 + np.exp(-(slope * sign * 20 + bias))) - share) < 0.1


def test_heads_that_read_different_layers_are_read_side_by_side_as_each_alone(mha):
    target, head = mha
    heads = {"plain": head, "reads": with_features(head), "reads more": with_features(head, (0, 1))}
    engines = {name: Engine(target, Recurrent(each, Shape(2, 2))) for name, each in heads.items()}
    contexts = np.random.default_rng(0).integers(0, 503, (4, each_round.CONTEXT_TOKENS)).tolist()
    together = each_round.read_each(engines, contexts, 1.0, 2)
    for name, engine in engines.items():
        for field, values in each_round.read(engine, contexts, 1.0, 2).items():
            np.testing.assert_array_equal(together[name][field], values)
    assert not np.array_equal(together["plain"]["score"], together["reads"]["score"])


def test_a_budget_keeps_the_nodes_of_largest_value():
    found = {name: values[:2] for name, values in rounds().items()}
    found["accepted"][:] = [[True, True, False], [True, True, True]]
    value = np.array([[0.0, -2.0, -1.0], [0.0, -1.0, -2.0]])
    assert fit.tokens_per_step(found, value, 2).tolist() == [1, 2] and fit.tokens_per_step(found, value, 3).tolist() == [2, 3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target with a tokenizer, a slim head for it, and a text."""
    place = tmp_path_factory.mktemp("calibrate")
    config = load_target("mha").config
    weights.save_drafter(Drafter(jax.random.key(1), slim(config.vocab_size, config.hidden_size)), place / "head")
    (place / "head" / "README.md").write_text("a card")
    (place / "notes.txt").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(300)))
    return with_tokenizer(place / "target"), place / "head", place / "notes.txt"


def run(folders, output, *more) -> int:
    target, head, text = map(str, folders)
    return calibrate.command(
        [
            "--target",
            target,
            "--drafter",
            head,
            "--text",
            text,
            "--output",
            str(output),
            "--places",
            "32",
            "--beam",
            "2",
            "3",
            *more,
        ]
    )


def test_the_command_writes_the_same_weights_with_a_fit(folders, tmp_path, capsys):
    assert run(folders, tmp_path / "fitted") == 0
    assert capsys.readouterr().out.count("| depth |") == 2
    written = weights.load_drafter(tmp_path / "fitted")
    assert len(written.config.confidence.greedy) == len(written.config.confidence.sampled) == 3
    assert (tmp_path / "fitted" / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()
    assert "with a fit of acceptance to its scores" in (tmp_path / "fitted" / "README.md").read_text()
    before, now = (json.loads((folder / "config.json").read_text()) for folder in (folders[1], tmp_path / "fitted"))
    assert now.pop("confidence") and now == before


def test_the_target_is_read_as_it_will_be_decoded(folders, tmp_path, capsys):
    found = []
    for number, more in enumerate(((), ("--weights", "int8"))):
        assert run(folders, tmp_path / str(number), *more) == 0
        found.append(weights.load_drafter(tmp_path / str(number)).config.confidence)
    assert found[0] != found[1]
    assert run(folders, tmp_path / "more", "--lora", str(tmp_path / "none")) == 2
    assert "--lora" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--places", "8"), "--places should be"),
        (("--beam", "0", "3"), "--beam: its width should be from 1 to 64, not 0"),
    ],
)
def test_wrong_options_are_one_sentence(more, sentence, folders, tmp_path, capsys):
    assert run(folders, tmp_path / "fitted", *more) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "fitted").exists()


def test_the_heads_own_folder_is_kept(folders, capsys):
    assert run(folders, folders[1]) == 2
    assert "--output is the folder of --drafter, which is kept" in capsys.readouterr().err

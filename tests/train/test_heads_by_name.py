"""Names of heads that stand for several options of `train.main`."""

import dataclasses

import pytest

from redrafter_jax.errors import BadInput
from train import main
from train.run.recipe import PRESETS, Recipe, named


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--head", "paper"], Recipe(head="full")),
        (["--head", "best"], Recipe(head="slim", decay=0.8, distance_weight=0.5, depths=2)),
        (["--head", "best", "--depths", "0"], Recipe(head="slim", decay=0.8, distance_weight=0.5)),
        (["--head", "best", "--method", "medusa"], Recipe(method="medusa", head="slim", decay=0.8, distance_weight=0.5)),
        (["--method=medusa", "--head=full"], Recipe(method="medusa")),
        (["--head=best", "--steps", "7"], Recipe(head="slim", decay=0.8, distance_weight=0.5, depths=2, steps=7)),
        (["--decay", "1", "--head", "best"], Recipe(head="slim", distance_weight=0.5, depths=2)),
        (["--preset", "demo", "--head", "best"], dataclasses.replace(PRESETS["demo"](), decay=0.8, distance_weight=0.5, depths=2)),
        (["--head", "slim"], Recipe(head="slim")),
        ([], Recipe()),
    ],
)
def test_a_name_is_its_options_which_others_change(given, expected):
    recipe = main.parse(["--target", "T", *given]).recipe
    assert recipe == expected
    recipe.check()


def test_a_recipe_in_python_has_the_head_itself():
    with pytest.raises(BadInput, match="full or slim in a recipe, and `named` makes one of best"):
        Recipe(head="best").check()
    assert named(Recipe(), "best") == Recipe(head="slim", decay=0.8, distance_weight=0.5, depths=2)
    assert named(Recipe(), "slim") == Recipe() and named(Recipe(method="medusa"), "best").depths == 0


@pytest.mark.parametrize("given, says", [(["--head", "bset"], "bset"), (["--head"], "--head")])
def test_another_name_is_one_sentence(given, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main.command(["--target", "T", *given])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err

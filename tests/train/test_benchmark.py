"""`python -m train.benchmark`: the forms agree, what it prints, and what it refuses."""

import json

import pytest

from train import benchmark

SMALL = ["--vocab", "96", "--width", "16", "--rows", "2", "--row-length", "16", "--positions", "3", "--repeats", "1"]


@pytest.mark.parametrize("head, soft", [("full", "0.0"), ("slim", "0.5")])
def test_ours_the_straightforward_form_and_torch_agree(head, soft, capsys):
    assert benchmark.command([*SMALL, "--head", head, "--distill-weight", soft, "--json"]) == 0
    forms = json.loads(capsys.readouterr().out)["forms"]
    assert list(forms) == list(benchmark.FORMS) and all(form["seconds"] > 0 for form in forms.values())


def test_forms_that_do_not_agree_are_not_compared(capsys, monkeypatch):
    right = benchmark.straightforward
    monkeypatch.setattr(benchmark, "straightforward", lambda *inputs, config: 1.01 * right(*inputs, config=config))
    assert benchmark.command([*SMALL, "--forms", "ours", "straightforward"]) == 2
    assert "disagree by" in capsys.readouterr().err
    assert benchmark.command([*SMALL, "--forms", "theirs"]) == 2
    assert "--forms" in capsys.readouterr().err

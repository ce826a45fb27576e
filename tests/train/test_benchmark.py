"""`python -m train.benchmark`: the forms agree, what it prints, and what it refuses."""

import json

import pytest

from train.benchmark import __main__ as benchmark
from train.benchmark import forms

SMALL = ["--vocab", "96", "--width", "16", "--rows", "2", "--row-length", "16", "--positions", "3", "--repeats", "1"]


@pytest.mark.parametrize("head, soft", [("full", "0.0"), ("slim", "0.5")])
def test_ours_the_straightforward_form_and_torch_agree(head, soft, capsys):
    assert benchmark.command([*SMALL, "--head", head, "--distill-weight", soft, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["forms"]
    assert list(found) == list(benchmark.FORMS) and all(form["seconds"] > 0 for form in found.values())


def test_forms_that_do_not_agree_are_not_compared(capsys, monkeypatch):
    right = forms.straightforward
    monkeypatch.setattr(forms, "straightforward", lambda *inputs, config: 1.01 * right(*inputs, config=config))
    assert benchmark.command([*SMALL, "--forms", "ours", "straightforward"]) == 2
    assert "disagree by" in capsys.readouterr().err
    assert benchmark.command([*SMALL, "--forms", "theirs"]) == 2
    assert "--forms" in capsys.readouterr().err

"""`train.demo.corpus`: text of the embedded pair's kind from installed packages."""

import pytest

from train.demo import corpus


def test_the_embedded_pairs_text_as_two_folders(tmp_path, capsys):
    assert corpus.command(["--output", str(tmp_path)]) == 0
    found = {
        name: {f.relative_to(tmp_path / name).as_posix() for f in (tmp_path / name).rglob("*.py")} for name in ("train", "held_out")
    }
    assert len(found["train"]) > 10 * len(found["held_out"]) > 0
    assert all(map(corpus.is_held_out, found["held_out"])) and not any(map(corpus.is_held_out, found["train"]))
    assert corpus.command(["--output", str(tmp_path), "--packages", "no_such_package"]) == 2
    assert "no_such_package" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no_such_package", "no.such", "", ".x", "json", "sys", "train"])
def test_what_is_not_an_installed_package_is_named(name, tmp_path, capsys):
    assert corpus.command(["--output", str(tmp_path / "corpus"), "--packages", name]) == 2
    assert f"error: --packages: {name!r} is not an installed package" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_package_is_known_by_the_name_it_is_imported_by():
    _, origin = corpus.read(("yaml",)).origins  # which PyYAML installs
    assert origin["name"] == "yaml" and origin["files"] > 0 and origin["licence"]

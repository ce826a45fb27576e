"""`train.demo.corpus`: text of the embedded pair's kind from installed packages."""

import json
import re

import pytest

from train.demo import corpus, packages


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


def test_packages_of_a_requirement_file_are_trained_on_or_held_out_whole_with_their_licences(tmp_path, capsys):
    listed = tmp_path / "requirements.txt"
    listed.write_text("# what is needed\ntyro>=1.0,<2\ngrain\nPyYAML\n-r other.txt\n")
    output = tmp_path / "corpus"
    assert corpus.command(["--output", str(output), "--requirements", str(listed), "--packages", "tyro"]) == 0
    origins = {origin["name"]: origin for origin in json.loads((output / "origins.json").read_text())["origins"][1:]}
    assert set(origins) >= {"tyro", "grain", "yaml"}
    for name, origin in origins.items():
        place = "held_out_packages" if packages.is_held_out(name) else "train"
        assert origin["part"] == place and origin["licence"] not in ("", "?")
        files = [file for file in (output / place / "packages" / name).rglob("*.py")]
        assert len(files) == origin["files"] > 0
        assert sum(file.stat().st_size for file in files) <= packages.MAX_PACKAGE_BYTES
    assert packages.is_held_out("grain") and not packages.is_held_out("tyro")
    assert not (output / "train" / "packages" / "grain").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no-such-thing>=1", "'no-such-thing' in .* installs no Python package here"),
        ("# none", "names no package"),
        (None, "cannot be read"),
    ],
)
def test_a_requirement_file_that_cannot_be_followed_is_one_sentence(text, sentence, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    if text is not None:
        listed.write_text(text)
    assert corpus.command(["--output", str(tmp_path / "corpus"), "--requirements", str(listed)]) == 2
    assert re.search(f"error: --requirements: .*{sentence}", capsys.readouterr().err)

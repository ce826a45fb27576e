"""The scripts that draw the pages' pictures."""

import sys

import pytest

from tests.docs.pages import ROOT

MODULES = ("frontier", "scaling", "fit_rows", "tokens_per_step", "terminal_picture")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """`docs/scripts` on the path, as for its own scripts."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_terminal_is_drawn_with_its_colours():
    import terminal_picture

    picture = terminal_picture.draw(["a \x1b[32mb", "c\x1b[0m <d>"])
    assert '<tspan>a </tspan><tspan class="draft">b</tspan>' in picture
    assert '<tspan class="draft">c</tspan><tspan> &lt;d&gt;</tspan>' in picture  # a colour lasts over the end of a line


def test_a_line_without_colours_is_wrapped_as_a_terminal_would():
    import terminal_picture

    assert max(map(len, terminal_picture.wrapped("word " * 40))) <= 80 and terminal_picture.wrapped("a") == ["a"]


def test_what_a_command_writes_to_a_terminal_is_read(monkeypatch):
    import terminal_picture

    program = "import sys; print(sys.stdout.isatty()); print('\\x1b[32mx\\x1b[0m'); print('2; 9 tokens/s'); print('8 tokens/s')"
    assert terminal_picture.screen_of(["python", "-c", program]) == ["True", "\x1b[32mx\x1b[0m", "2; 9 tokens/s"]


def test_the_plots_are_drawn_from_the_data(tmp_path, monkeypatch):
    import frontier
    import scaling
    import tokens_per_step

    monkeypatch.setattr(scaling, "IMAGES", tmp_path)
    monkeypatch.setattr(tokens_per_step, "IMAGES", tmp_path)
    monkeypatch.setattr(frontier, "PICTURE", tmp_path / frontier.PICTURE.name)
    scaling.plot()
    tokens_per_step.main()
    frontier.draw()
    said = {file.name: file.read_text() for file in tmp_path.glob("*.svg")}
    assert set(said) == {file.name for file in (ROOT / "docs" / "images").glob("*.svg")} - {"terminal.svg"}
    assert "Llama-3.1 8B, v5e:2x4, batch 8" in said["scaling_break_even.svg"] and "slim head" in said["tokens_per_step.svg"]
    assert "best with features" in said["frontier.svg"]

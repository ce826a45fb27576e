"""docs/images/terminal.svg: what `python -m infer.generate` shows in a terminal, accepted drafts in green.

    python docs/scripts/terminal_picture.py

The command is run in a pseudo-terminal of 80 columns, and what it writes is drawn as it is, up to the comparison with plain
decoding, whose speeds belong to benchmarks.
"""

import html
import os
import pathlib
import pty
import re
import subprocess
import sys
import textwrap

COMMAND = ["python", "-m", "infer.generate"]
FILE = pathlib.Path(__file__).parents[1] / "images" / "terminal.svg"
COLUMNS, CHARACTER, LINE, MARGIN = 80, 8.4, 19, 16  # pixels, but for the columns
STYLE = """text { font: 14px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #d4d4d4; white-space: pre; }
.draft { fill: #4ec97b; } .shell { fill: #7aa2f7; }"""


def main() -> None:
    """Runs the command and draws it."""
    shown = " ".join(f'"{word}"' if " " in word else word for word in COMMAND)
    lines = [f"\x1b[34m$ {shown}\x1b[0m", *screen_of(COMMAND)]
    FILE.write_text(draw(lines))
    print(f"{len(lines)} lines in {FILE}")


def screen_of(command: list[str]) -> list[str]:
    """What a command writes to a terminal, by lines of at most `COLUMNS`, colours included."""
    leader, follower = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": str(COLUMNS)}
    words = [sys.executable, *command[1:]]
    with subprocess.Popen(words, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL, env=clean) as process:
        os.close(follower)
        text = read_all(leader)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    lines = text.replace("\r\n", "\n").split("\n")
    closing = next(number for number, line in enumerate(lines) if "tokens/s" in line)
    lines = lines[: closing + 1]
    return [part for line in lines for part in wrapped(line)]


def read_all(leader: int) -> str:
    """All that is written to a pseudo-terminal until the last writer is gone."""
    parts = []
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # Linux says EIO where others give nothing
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def wrapped(line: str) -> list[str]:
    """A line in parts of at most `COLUMNS`; one with colours is the model's and left as it is."""
    if "\x1b" in line or len(line) <= COLUMNS:
        return [line]
    return textwrap.wrap(line, COLUMNS, break_long_words=True)


def draw(lines: list[str]) -> str:
    """The picture of these lines."""
    width, height = round(COLUMNS * CHARACTER + 2 * MARGIN), LINE * len(lines) + 2 * MARGIN
    rows, colour = [], ""
    for number, line in enumerate(lines):
        spans, colour = spans_of(line, colour)
        rows.append(f'<text x="{MARGIN}" y="{MARGIN + LINE * (number + 1) - 5}" xml:space="preserve">{spans}</text>')
    body = "\n".join(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1e1e2e"/>\n{body}\n</svg>\n'
    )


def spans_of(line: str, colour: str) -> tuple[str, str]:
    """A line as spans, each with its colour; and the colour that the next line begins with."""
    spans = []
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if part.startswith("\x1b"):
            colour = {"\x1b[32m": "draft", "\x1b[34m": "shell"}.get(part, "")
        elif part:
            text = html.escape(part.expandtabs(8), quote=False)
            spans.append(f'<tspan class="{colour}">{text}</tspan>' if colour else f"<tspan>{text}</tspan>")
    return "".join(joined(spans)), colour


def joined(spans: list[str]) -> list[str]:
    """Spans with neighbours of the same colour made one."""
    whole: list[str] = []
    for span in spans:
        opening = span[: span.index(">") + 1]
        if whole and whole[-1].startswith(opening):
            whole[-1] = whole[-1].removesuffix("</tspan>") + span.removeprefix(opening)
        else:
            whole.append(span)
    return whole


if __name__ == "__main__":
    main()

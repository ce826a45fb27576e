"""The commands and the Python of README and docs/, as a reader would copy them."""

import dataclasses
import functools
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
TESTED = ROOT / "docs" / "reports" / "tested.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ON_HOSTS = ("all ", "until ")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of a shell on a page, continuation lines joined and its comment gone."""

    page: pathlib.Path
    line: str

    @property
    def parts(self) -> list[str]:
        """The commands that it chains with && or a pipe; first the line of all hosts, then what it starts there."""
        if self.line.startswith(ON_HOSTS):
            return [self.line, *(call.strip() for call in re.findall(r"python -m [^\";|&]*", self.line))]
        return [part.strip() for part in re.split(r"&&|\|", self.line)]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.line}"


def commands_of(page: pathlib.Path) -> list[Command]:
    """The commands of a page: indented by four spaces, in a bash block, or in backticks and beginning with `python -m`."""
    text = page.read_text()
    blocks = [code for language, code in FENCE.findall(text) if language in ("bash", "sh", "shell")]
    blocks += indented_blocks(FENCE.sub("", text))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [Command(page, said) for line in lines if (said := without_comment(line)) and looks_like_one(said)]


def inline_commands_of(page: pathlib.Path) -> list[Command]:
    """Commands of this project in the running text, which may be broken over two lines."""
    spans = re.findall(r"`(python -m (?:infer|train)[^`]*)`", FENCE.sub("", page.read_text()))
    return [Command(page, " ".join(span.split())) for span in spans]


def indented_blocks(text: str) -> list[str]:
    """Blocks that are indented by four spaces behind an empty line, without the indent."""
    found, block, before = [], [], ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("    ") and (block or not before.strip()):
            block.append(line[4:])
        elif line.strip() or not block:
            found, block = [*found, "\n".join(block)] if block else found, []
        before = line
    return [*found, "\n".join(block)] if block else found


def without_comment(line: str) -> str:
    """A line without what stands behind a #, as a shell reads it."""
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def looks_like_one(line: str) -> bool:
    """Whether a line is a command and not text, a tree or a function's signature."""
    return bool(
        re.match(r"(python|pip|pytest|ruff|uv|echo|tensorboard|xprof|jupyter|mkdocs|gcloud|all|until|git|python3\.13)\b", line)
    )


def python_of(page: pathlib.Path) -> str:
    """All Python of a page, in one piece: later blocks use what earlier ones made."""
    return "\n".join(code for language, code in FENCE.findall(page.read_text()) if language == "python")


@functools.cache
def only_parsed() -> dict[str, str]:
    """How the commands begin that are not run, each with the reason: the table of docs/reports/tested.md."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", TESTED.read_text(), re.M)
    return dict(rows)


def why_not_run(part: str) -> str | None:
    """Why a command is only parsed; None where it is run."""
    return next((why for begins, why in only_parsed().items() if part.startswith(begins)), None)


def module_of(part: str) -> tuple[str, list[str]] | None:
    """The module and the options of a command of this project; None for any other."""
    if not part.startswith("python -m "):
        return None
    module, *options = shlex.split(part.removeprefix("python -m "))
    if module.split(".")[0] not in ("infer", "train"):
        return None
    if ">" in options:
        options = options[: options.index(">")]
    return module, options
